"""guard_stats: what controllers cost and what they were good for, point by point."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.catastrophes import judged
from kvx.analyze.frames import Experiment
from kvx.analyze.tables import Row, null
from kvx.config import AnalyzeConfig
from kvx.engines.base import ACTIONS
from kvx.guard.catastrophes import CATASTROPHES, TOKENS
from kvx.guard.detectors import INSTANT as INSTANT_TOKENS
from kvx.guard.live_stats import (
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
from kvx.guard.ranking import Resampler
from kvx.store.catalog import PointRecord

IDLE = ("watch", "alarm")  # nothing was done, so nobody waited
DONE = tuple(action for action in ACTIONS if action not in IDLE)


def guard_stats(experiment: Experiment, config: AnalyzeConfig) -> list[Row]:
    """One row per guarded point and figure; none where no point has a controller."""
    guarded = [p for p in experiment.points if p.is_guarded]
    if not guarded:
        return []
    responses = _responses(experiment)
    resamplers: dict[int, Resampler] = {}  # points of as many prompts share their resamples
    rows = []
    for point in guarded:
        plain = experiment.unguarded(point)
        own = responses[responses["point_id"] == point.id]
        about = {
            **experiment.series_columns(point),
            "unguarded_point_id": None if plain is None else plain.id,
            "n_degenerate": int(own["degenerate"].sum()),
        }
        prompts = int(own["prompt"].max()) + 1 if len(own) else 0
        by = resamplers.setdefault(
            prompts, Resampler(prompts, config.n_boot, config.confidence, config.seed)
        )
        figures = cost_figures(_use(experiment, point, own), by)
        other = responses[responses["point_id"] == (plain.id if plain else "")]
        figures += effect_figures(_pairs(own, other), by)
        rows += [about | _row(figure) for figure in figures]
    return rows


def _row(figure: Figure) -> Row:
    return {
        "figure": figure.name, "kind": figure.kind, "n": figure.n,
        "n_clusters": figure.n_clusters, "count": figure.count, "value": null(figure.value),
        "ci_low": null(figure.interval.low), "ci_high": null(figure.interval.high),
        "ci_method": figure.method,
    }  # fmt: skip


def _responses(experiment: Experiment) -> pd.DataFrame:
    """Every response with its number of prompt (from 0 in each point), its score, and which
    catastrophes are excess (`excess_<kind>`, nan where not known).
    """
    requests = experiment.requests
    frame = requests[requests["has_response"].astype(bool)].copy()
    frame["prompt"] = frame.groupby("point_id")["cluster"].transform(_numbers)
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
    return frame.assign(**{f"excess_{kind}": column for kind, column in columns.items()})


def _numbers(clusters: pd.Series) -> NDArray[np.int64]:
    return np.unique(clusters.astype(str), return_inverse=True)[1].astype(np.int64)


def _use(experiment: Experiment, point: PointRecord, own: pd.DataFrame) -> Use:
    mine = experiment.events[experiment.events["point_id"] == point.id]
    dropped = mine.groupby("request_id")["tokens_dropped"].sum()
    prompts = own.set_index("request_id")["prompt"]
    waits = mine[mine["action"].isin(DONE) & mine["request_id"].isin(prompts.index)]
    entries = _floats(own, "compressed_tokens")
    return Use(
        clusters=own["prompt"].to_numpy(np.int64),
        intervened=_floats(own, "guard_interventions"),
        mean_budget=_floats(own, "guard_mean_budget"),
        nominal_budget=_nominal(experiment, point, own, entries),
        entries=entries,
        decoded=_floats(own, "guard_decoded_tokens"),
        output=_floats(own, "output_tokens"),
        dropped=own["request_id"].map(dropped).fillna(0).to_numpy(float),
        recomputed=_floats(own, "guard_recomputed_tokens"),
        host_bytes=_floats(own, "kv_bytes_host"),
        pause_ms=waits["milliseconds"].to_numpy(float),
        pause_clusters=waits["request_id"].map(prompts).to_numpy(np.int64),
    )


def _nominal(
    experiment: Experiment, point: PointRecord, own: pd.DataFrame, entries: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The share that the press keeps of each prompt; where it was not counted, the budget."""
    kept = _floats(own, "kv_entries_nominal") / entries
    budget = experiment.series_columns(point)["budget"]
    return np.where(np.isnan(kept), budget, kept)


def _floats(frame: pd.DataFrame, name: str) -> NDArray[np.float64]:
    return np.asarray(frame[name].astype(float), dtype=np.float64)


def _pairs(own: pd.DataFrame, other: pd.DataFrame) -> Pairs:
    """The examples that both points have a response to."""
    names = ["example_id", "score", *(f"excess_{kind}" for kind in KINDS)]
    both = own[["prompt", "guard_interventions", *names]].merge(
        other[names], on="example_id", suffixes=("", "_there"), validate="1:1"
    )

    def flags(kinds: Sequence[str], side: str) -> dict[str, NDArray[np.float64]]:
        return {kind: _floats(both, f"excess_{kind}{side}") for kind in kinds}

    here = flags(KINDS, "")
    here[INSTANT] = here[CATASTROPHES[0]]  # cured only if no loop is left, however late it begins
    return Pairs(
        clusters=both["prompt"].to_numpy(np.int64),
        intervened=_floats(both, "guard_interventions"), here=here, there=flags(KINDS, "_there"),
        score_here=_floats(both, "score"), score_there=_floats(both, "score_there"),
    )  # fmt: skip
