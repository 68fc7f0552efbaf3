"""guard_stats: what controllers cost and what they were good for, point by point."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.catastrophe_stats import judged
from kvx.analyze.frames import Experiment
from kvx.config.analyze import AnalyzeConfig
from kvx.guard.events import ACTIONS
from kvx.learning.live_stats import (
    ANY,
    INSTANT,
    KINDS,
    Figure,
    Pairs,
    Use,
    any_of,
    cost_figures,
    effect_figures,
    excess,
)
from kvx.learning.ranking import Resampler
from kvx.scoring.catastrophes import CATASTROPHES, TOKENS
from kvx.scoring.loops import INSTANT as INSTANT_TOKENS

IDLE = ("watch", "alarm")  # no action, so no pause
DONE = tuple(action for action in ACTIONS if action not in IDLE)


def guard_stats(experiment: Experiment, config: AnalyzeConfig) -> list[Row]:
    """One row per guarded point and figure; none where no point has a controller."""
    guarded = [p for p in experiment.points if p.is_guarded]
    if not guarded:
        return []
    seen = responses(experiment)
    seen["prompt"] = seen.groupby("point_id")["cluster"].transform(numbers)
    resamplers: dict[int, Resampler] = {}  # points of as many prompts share their resamples
    rows = []
    for point in guarded:
        plain = experiment.unguarded(point)
        own = seen[seen["point_id"] == point.id]
        about = {
            **experiment.series_columns(point),
            "unguarded_point_id": None if plain is None else plain.id,
            "n_degenerate": int(own["degenerate"].sum()),
        }
        prompts = int(own["prompt"].max()) + 1 if len(own) else 0
        by = resamplers.setdefault(
            prompts, Resampler(prompts, config.n_boot, config.confidence, config.seed)
        )
        figures = cost_figures(use(own, experiment.events), by)
        other = seen[seen["point_id"] == (plain.id if plain else "")]
        figures += effect_figures(pairs(beside(own, other, ["example_id"])), by)
        rows += [about | row_of(figure) for figure in figures]
    return rows


def row_of(figure: Figure) -> Row:
    return {
        "figure": figure.name, "kind": figure.kind, "n": figure.n,
        "n_clusters": figure.n_clusters, "count": figure.count, "value": null(figure.value),
        "ci_low": null(figure.interval.low), "ci_high": null(figure.interval.high),
        "ci_method": figure.method,
    }  # fmt: skip


def responses(experiment: Experiment) -> pd.DataFrame:
    """Every response with its score, which catastrophes are excess (`excess_<kind>`, nan where not
    known), the share of its prompt that its press keeps (`nominal`) and its tokens `dropped`.
    """
    requests = experiment.requests
    frame = requests[requests["has_response"].astype(bool)].copy()
    budgets = {p.id: experiment.series_columns(p)["budget"] for p in experiment.points}
    kept = floats(frame, "kv_entries_nominal") / floats(frame, "compressed_tokens")
    frame["nominal"] = np.where(np.isnan(kept), frame["point_id"].map(budgets), kept)
    dropped = experiment.events.groupby("request_id")["tokens_dropped"].sum()
    frame["dropped"] = frame["request_id"].map(dropped).fillna(0).astype(float)
    scores = experiment.scores[experiment.scores["primary"]].set_index("request_id")["score"]
    frame["score"] = frame["request_id"].map(scores).astype(float)
    flags = judged(experiment).set_index("request_id").reindex(frame["request_id"])
    found = {
        kind: excess(flags[kind].to_numpy(), flags[f"twin_{kind}"].to_numpy())
        for kind in CATASTROPHES
    }
    seen = experiment.catastrophes.set_index("request_id").reindex(frame["request_id"])
    onset = seen["loop_onset"].astype(float).where(seen["unit"] == TOKENS).to_numpy(float)
    loops = found[CATASTROPHES[0]]
    at_once = np.where(np.isnan(loops), np.nan, (loops == 1) & (onset <= INSTANT_TOKENS))
    columns = found | {ANY: any_of(found), INSTANT: at_once}
    frame["derailed"] = flags["any"].to_numpy(float)
    return frame.assign(**{f"excess_{kind}": column for kind, column in columns.items()})


def numbers(clusters: pd.Series) -> NDArray[np.int64]:
    return np.unique(clusters.astype(str), return_inverse=True)[1].astype(np.int64)


def use(own: pd.DataFrame, events: pd.DataFrame) -> Use:
    """Resources used by the responses `own`; `prompt` numbers their prompts."""
    prompts = own.drop_duplicates("request_id").set_index("request_id")["prompt"]
    waits = events[events["action"].isin(DONE) & events["request_id"].isin(prompts.index)]
    return Use(
        clusters=own["prompt"].to_numpy(np.int64),
        intervened=floats(own, "guard_interventions"),
        mean_budget=floats(own, "guard_mean_budget"),
        nominal_budget=floats(own, "nominal"),
        entries=floats(own, "compressed_tokens"),
        decoded=floats(own, "guard_decoded_tokens"),
        output=floats(own, "output_tokens"),
        dropped=floats(own, "dropped"),
        recomputed=floats(own, "guard_recomputed_tokens"),
        host_bytes=floats(own, "kv_bytes_host"),
        pause_ms=waits["milliseconds"].to_numpy(float),
        pause_clusters=waits["request_id"].map(prompts).to_numpy(np.int64),
    )


def floats(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    return np.asarray(frame[name].astype(float), dtype=np.float64)


def beside(own: pd.DataFrame, other: pd.DataFrame, on: list[str]) -> pd.DataFrame:
    """The responses that both have, by the columns `on`; those of `other` end in `_there`."""
    names = [*on, "score", "derailed", *(f"excess_{kind}" for kind in KINDS)]
    return own.merge(other[names], on=on, suffixes=("", "_there"), validate="m:1")


def pairs(both: pd.DataFrame) -> Pairs:
    """What `beside` put together; `prompt` numbers the prompts."""

    def flags(kinds: Sequence[str], side: str) -> dict[str, NDArray[np.float64]]:
        return {kind: floats(both, f"excess_{kind}{side}") for kind in kinds}

    here = flags(KINDS, "")
    here[INSTANT] = here[CATASTROPHES[0]]  # cured only if no loop is left, however late it begins
    return Pairs(
        clusters=both["prompt"].to_numpy(np.int64),
        intervened=floats(both, "guard_interventions"),
        here=here,
        there=flags(KINDS, "_there"),
        derailed=floats(both, "derailed_there"),
        score_here=floats(both, "score"),
        score_there=floats(both, "score_there"),
    )
