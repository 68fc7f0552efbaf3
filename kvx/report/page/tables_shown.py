"""What the plots of report.html show: points, cells and what was counted in them."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kvx.analyze.budget_plots import series
from kvx.analyze.columns import is_full
from kvx.analyze.looks import FULL_CACHE, looks
from kvx.analyze.naming import metric_title
from kvx.analyze.plots import plain as plain_rows
from kvx.report.page.packing import columns, plain
from kvx.report.verdicts import corrected_p, verdict
from kvx.report.wording import series_name
from kvx.store.catalog import PointRecord, read_columns

CELL = {
    "n": "n", "n_requests": "requests", "n_responses": "responses", "mean": "mean",
    "ci_low": "low", "ci_high": "high", "n_failures": "failures", "failure_rate": "failure_rate",
    "failure_ci_low": "failure_low", "failure_ci_high": "failure_high",
    "n_degenerate": "degenerate", "latency_p50_s": "p50", "latency_p95_s": "p95",
    "ttft_p50_s": "ttft", "tpot_p50_s": "tpot", "n_latency": "n_latency",
    "kv_bytes_mean": "bytes", "kv_bytes_full_mean": "full_bytes", "budget_measured": "measured",
    "output_tokens_mean": "output_tokens",
}  # fmt: skip
PAIR = {
    "n_pairs": "pairs", "difference": "difference", "ci_low": "difference_low",
    "ci_high": "difference_high", "n_lost": "lost", "n_won": "gained", "n_missing": "missing",
    "corrected_p": "p", "verdict": "verdict",
}  # fmt: skip
DERAILED = {
    "kind": "kind", "n": "n", "rate": "rate", "ci_low": "low", "ci_high": "high",
    "excess": "excess", "excess_ci_low": "excess_low", "excess_ci_high": "excess_high",
    "n_excess": "n_excess", "excess_p_bh": "p", "clear": "clear",
}  # fmt: skip
COMPARED = {
    "position_low": "from", "position_high": "to", "n_tokens": "tokens", "n_prompts": "prompts",
    "n_degenerate": "degenerate", "kl_nats": "kl", "kl_nats_ci_low": "kl_low",
    "kl_nats_ci_high": "kl_high", "agreement": "agreement", "agreement_ci_low": "agreement_low",
    "agreement_ci_high": "agreement_high", "same_answer": "same", "perplexity_ratio": "perplexity",
}  # fmt: skip
CURVE = (
    "press", "controller", "seed", "budget_kind", "transition_label", "transition_above_label",
    "shape",
)  # fmt: skip

FIT = (
    "press", "controller", "seed", "budget_kind", "bin", "lowest_budget", "guess", "lapse",
    "midpoint",
    "width", "b50", "b50_ci_low", "b50_ci_high", "b50_state", "b95", "b95_ci_low", "b95_ci_high",
    "b95_state",
)  # fmt: skip


def figures(
    points: Sequence[PointRecord],
    bin_stats: pd.DataFrame,
    comparisons: pd.DataFrame,
    transitions: pd.DataFrame,
    catastrophe_stats: pd.DataFrame,
    dose_response: pd.DataFrame | None,
    fidelity_stats: pd.DataFrame,
    confidence: float,
    used: Mapping[str, float],
) -> dict[str, Any]:
    """Everything that is drawn; points and variants by their numbers in the lists of this.

    Only the primary metric's rows are shown. Points with a controller stand at the share that they
    had on the device on average (`used`), not at the one that they began with.
    """
    stats = bin_stats[bin_stats["primary"]]
    pairs = comparisons[comparisons["primary"]]
    rows = [row for _, row in pairs.iterrows()]
    pairs = pairs.assign(
        verdict=[verdict(row, 1 - confidence).name for row in rows],
        corrected_p=[corrected_p(row) for row in rows],
    )
    first = stats.drop_duplicates("point_id").assign(full=is_full)
    variants = list(dict.fromkeys(first["variant_id"]))
    number = {point: i for i, point in enumerate(first["point_id"])}
    twins = dict(zip(pairs["point_id"], pairs["twin_point_id"], strict=True))
    key = ["point_id", "bin"]
    cells = stats[[*key, *CELL]].rename(columns=CELL)
    beside = pairs[[*key, *PAIR]].rename(columns=PAIR)
    cells = cells.merge(beside, on=key, how="left")
    failed = read_columns(points, "failures", ["point_id", "bin", "error_type"])
    counts = failed.groupby([*key, "error_type"]).size().rename("count").reset_index()
    derailed = catastrophes_shown(catastrophe_stats, 1 - confidence)[[*key, *DERAILED.values()]]
    return {
        "variants": [_variant(stats[stats["variant_id"] == v]) for v in variants],
        "points": points_shown(
            first.assign(budget=_drawn_at(first, used)), variants, number, twins
        ),
        "cells": columns(_numbered(cells, number)),
        "failures": columns(_numbered(counts, number).rename(columns={"error_type": "kind"})),
        "catastrophes": columns(_numbered(derailed, number)),
        "transitions": [
            {"variant": variants.index(row["variant_id"]), **{n: plain(row.get(n)) for n in CURVE}}
            for _, row in transitions.iterrows()
        ],
        "fits": _fits(dose_response, variants),
        "fidelity": fidelity_shown(fidelity_stats, number),
    }


def fidelity_figures(fidelity_stats: pd.DataFrame) -> dict[str, Any]:
    """What is drawn of an experiment without answers."""
    first = fidelity_stats.drop_duplicates("point_id").assign(full=is_full)
    variants = list(dict.fromkeys(first["variant_id"]))
    number = {point: i for i, point in enumerate(first["point_id"])}
    about = fidelity_stats.assign(metric="", higher_is_better=True)
    return {
        "variants": [_variant(about[about["variant_id"] == v]) for v in variants],
        "points": points_shown(first, variants, number, {}),
        "cells": {}, "failures": {}, "catastrophes": {}, "transitions": [], "fits": [],
        "fidelity": fidelity_shown(fidelity_stats, number),
    }  # fmt: skip


def fidelity_shown(stats: pd.DataFrame, number: Mapping[str, int]) -> dict[str, list[Any]]:
    """Rows of fidelity_stats; those over all tokens have no `to` and begin at token 1."""
    rows = stats.rename(columns=COMPARED)
    return columns(_numbered(rows[["point_id", "bin", *COMPARED.values()]], number))


def catastrophes_shown(stats: pd.DataFrame, alpha: float) -> pd.DataFrame:
    """Rows of catastrophe_stats; `clear` where report.md sets the excess in bold."""
    p = pd.to_numeric(stats["excess_p_bh"])
    return stats.assign(clear=p.notna() & (p < alpha)).rename(columns=DERAILED)


def _fits(dose_response: pd.DataFrame | None, variants: Sequence[str]) -> list[dict[str, Any]]:
    """The fitted curves over budgets, those of every bin; none without the table."""
    if dose_response is None:
        return []
    return [
        {"variant": variants.index(row["variant_id"]), **{n: plain(row[n]) for n in FIT}}
        for _, row in dose_response.iterrows()
    ]


def _variant(stats: pd.DataFrame) -> dict[str, Any]:
    row = stats.iloc[0]
    bins = stats[stats["bin"] >= 0].drop_duplicates("bin").sort_values("bin")
    edges = zip(bins["bin"], bins["bin_low_tokens"], bins["bin_high_tokens"], strict=True)
    return {
        "label": row["variant"], "model": row["model"], "dataset": row["dataset"],
        "metric": metric_title(str(row["metric"])), "higher": bool(row["higher_is_better"]),
        "bins": [{"bin": int(b), "low": int(lo), "high": int(hi)} for b, lo, hi in edges],
    }  # fmt: skip


def points_shown(
    first: pd.DataFrame,
    variants: Sequence[str],
    number: Mapping[str, int],
    twins: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Every point with its look: that of its press in the plots of report.md.

    `first` has a row of bin_stats for each point.
    """
    names = _drawn_names(first)
    alone, compressed = plain_rows(first).index, ~is_full(first)
    look = looks(names[alone][compressed[alone]], names[compressed])
    found = []
    for (_, row), name in zip(first.iterrows(), names, strict=True):
        own = look.get(name, look[FULL_CACHE])
        twin = twins.get(row["point_id"])
        found.append(
            {
                "id": row["point_id"], "variant": variants.index(row["variant_id"]),
                "press": row["press"], "series": series_name(row), "controller": row["controller"],
                "seed": int(row["seed"]), "kind": row["budget_kind"], "label": row["budget_label"],
                "asked": plain(row["budget_asked"]), "budget": plain(row["budget"]),
                "full": bool(row["full"]), "twin": number.get(twin) if twin else None,
                "colour": own.colour, "marker": own.marker, "dash": own.dash,
                "dashed": row["controller"] != "none",
            }
        )  # fmt: skip
    return found


def _drawn_at(first: pd.DataFrame, used: Mapping[str, float]) -> "pd.Series[float]":
    """The budget at which each point is drawn; nan for a controller's that was not measured."""
    return first["budget"].where(
        first["controller"] == "none", first["point_id"].map(used).astype(float)
    )


def _drawn_names(first: pd.DataFrame) -> "pd.Series[str]":
    """What the plots of report.md call each point's curve.

    They leave out points of controllers, which here look like their press, with short dashes.
    """
    alone = plain_rows(first)
    if len(alone) == len(first):
        return series(first)
    names = first["press"].astype(str)
    return names + " seed=" + first["seed"].astype(str) if alone["seed"].nunique() > 1 else names


def _numbered(frame: pd.DataFrame, number: Mapping[str, int]) -> pd.DataFrame:
    """With `point`, its number, in place of `point_id`."""
    frame = frame[frame["point_id"].isin(list(number))]
    numbers = frame["point_id"].map(number).astype(int)
    return frame.drop(columns="point_id").assign(point=numbers)
