"""What an experiment offers to learn from: traces, their outcomes and their prompts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.catastrophe_stats import judged
from kvx.analyze.frames import Experiment
from kvx.config.train import Labels
from kvx.errors import UserError
from kvx.guard.loop_follower import first_report
from kvx.guard.trace_arrays import NO_PRESS, Traces
from kvx.identity.hazard_files import prompt_hash
from kvx.learning.baselines import repeated_ngrams
from kvx.learning.labels import Role, Targets, targets
from kvx.scoring.catastrophes import TOKENS
from kvx.store.catalog import PointRecord
from kvx.store.traces import Holds, holds, joined, read_traces, to_traces

REPEATED = "repeated_ngrams"


@dataclass(frozen=True)
class Data:
    """Traces with what is known of their responses; `frame` [n] has one row per trace.

    Its columns: request_id, point_id, prompt (the cluster: never on two sides of a split),
    dataset, model, press, method (presses of one method differ in their settings only), budget,
    full_cache, degenerate, detected (the token with which a loop is first reported as it happens;
    nan: never, or no token ids), and those of `outcomes_of`.
    """

    frame: pd.DataFrame
    traces: Traces
    about: Targets

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def clusters(self) -> NDArray[np.int64]:
        """The prompts' numbers [n], in the order of their names."""
        return np.unique(self.frame["prompt"], return_inverse=True)[1].astype(np.int64)

    @property
    def n_prompts(self) -> int:
        return int(self.frame["prompt"].nunique())

    @cached_property
    def presses(self) -> list[str]:
        """The presses of compressed traces, sorted."""
        return sorted(set(self.frame["press"]) - {NO_PRESS})

    @cached_property
    def compressed(self) -> NDArray[np.bool_]:
        return ~self.frame["full_cache"].to_numpy(bool)

    @cached_property
    def judged(self) -> NDArray[np.bool_]:
        """The traces that figures are about: compressed ones that are not left out."""
        return np.asarray(self.compressed & (self.about.role != Role.LEFT_OUT))

    @cached_property
    def strata(self) -> dict[str, str]:
        """Each prompt's stratum: its dataset, and whether a catastrophe happened to it."""
        happened = self.frame.assign(event=self.about.events).groupby("prompt")
        return {
            str(prompt): f"{rows['dataset'].iloc[0]} {int(rows['event'].any())}"
            for prompt, rows in happened
        }

    def take(self, rows: NDArray[np.bool_]) -> "Data":
        return Data(
            self.frame[rows].reset_index(drop=True), self.traces.take(rows), self.about.take(rows)
        )

    def until_detection(self) -> "Data":
        """The same traces with events that start where their loop can be detected."""
        at = np.where(self.about.events, self.frame["detected"].to_numpy(float), np.nan)
        return replace(self, about=replace(self.about, onset=at))


def load(experiment: Experiment, labels: Labels, degenerate: bool) -> Data:
    """Every response with a trace, full caches once per example and variant.

    A compressed response whose full cache failed is left out: what compression caused is not known.
    Raises `UserError` if traces are missing or too light, or compressed points have no full-cache
    full cache.
    """
    points = [p for p in experiment.points if p.info["controller"] == "none"]
    for point in points:
        if experiment.full_cache(point) is None:
            raise UserError(
                f"{experiment.dir}: {point.id} has no baseline; run it with budget=1.0 too "
                "(press=none, or the same press)"
            )
    full, outcomes = _full_caches(points), outcomes_of(experiment)
    chosen = [p for p in points if not p.is_full_cache or p.id in full]
    parts = [_of_point(experiment, point, outcomes, degenerate) for point in chosen]
    parts = [(frame, traces) for frame, traces in parts if len(frame)]
    if not parts:
        raise UserError(f"{experiment.dir}: no response to learn from")
    frames, traces = zip(*parts, strict=True)
    f = pd.concat(frames, ignore_index=True)
    about = targets(f["onset"], f["unplaced"], f["excess"], labels is Labels.excess)
    return Data(f, joined(traces), about)


def outcomes_of(experiment: Experiment) -> pd.DataFrame:
    """By request id: `onset` of its loop (nan: none), `unplaced` and `excess` (`labels.targets`),
    `capped`, `looping`, and whether there is a full cache's response beside it (`paired`).

    Reaching the cap counts as a catastrophe only where the full cache did not.
    """
    seen, flags = experiment.catastrophes, judged(experiment)
    in_tokens = seen["unit"] == TOKENS  # an onset in words has no place in a trace
    looping, capped = flags["looping"] == 1, flags["non_termination"] == 1
    unplaced = (capped & (flags["twin_non_termination"] == 0)) | (flags["amnesia"] == 1)
    return pd.DataFrame(
        {
            "onset": seen["loop_onset"].astype(float).where(in_tokens),
            "unplaced": unplaced | (looping & ~in_tokens),
            "excess": looping & (flags["twin_looping"] == 0),
            "capped": capped,
            "looping": looping,
            "paired": flags["twin_any"].notna(),
        }
    ).set_index(seen["request_id"])


def prompt_ids(data: Data) -> list[str]:
    """Each trace's prompt as model cards record it: by its hash."""
    names = data.frame["prompt"]
    return [str(i) for i in names.map({name: prompt_hash(name) for name in names.unique()})]


def _full_caches(points: list[PointRecord]) -> set[str]:
    """One full-cache point of each variant and seed: the others generated the same."""
    best: dict[tuple[str, int], str] = {}
    for p in sorted(points, key=lambda p: bool(p.info["press"] != NO_PRESS)):
        if p.is_full_cache:
            best.setdefault((p.info["variant_id"], p.info["seed"]), p.id)
    return set(best.values())


def _of_point(
    experiment: Experiment, point: PointRecord, outcomes: pd.DataFrame, degenerate: bool
) -> tuple[pd.DataFrame, Traces]:
    info = point.info
    requests = experiment.requests[experiment.requests["point_id"] == point.id]
    use = requests["has_response"].astype(bool) & (requests["output_tokens"] > 0)
    if not degenerate:
        use &= ~requests["degenerate"].astype(bool)
    if not point.is_full_cache:
        use &= requests["request_id"].isin(outcomes.index[outcomes["paired"]])
    requests = requests[use]
    table = read_traces(point.dir, requests["request_id"].tolist())
    kinds = Counter(holds(table))
    if kinds[Holds.NOTHING]:
        raise UserError(
            f"{point.dir}: no traces of {kinds[Holds.NOTHING]} responses; run kvx.run with "
            "signals=full under another experiment_name"
        )
    if kinds[Holds.LIGHT]:
        raise UserError(f"{point.dir}: its traces are light; run kvx.run with signals=full")
    full, token_ids = point.is_full_cache, table["token_ids"].to_pylist()
    usual = info["config"]["decoding"]["max_new_tokens"]
    compressed_tokens = requests["compressed_tokens"].to_numpy(float)
    if info["budget"] is None:
        budget = np.minimum(1.0, info["budget_tokens"] / compressed_tokens)
    else:
        budget = np.full(len(requests), info["budget"], float)
    prefill: dict[str, NDArray[Any]] = {
        "budget": budget.astype(np.float32),
        "prompt_tokens": requests["prompt_tokens"].to_numpy(np.float32),
        "kept_tokens": (budget * compressed_tokens).astype(np.float32),
        "max_new_tokens": requests["max_new_tokens"].fillna(usual).to_numpy(np.float32),
        "press": np.full(len(requests), NO_PRESS if full else info["press"], dtype=object),
    }
    frame = pd.DataFrame(
        {
            "request_id": requests["request_id"].to_numpy(),
            "point_id": point.id,
            "prompt": requests["cluster"].astype(str).to_numpy(),
            "dataset": info["dataset"],
            "model": info["model"],
            "press": prefill["press"],
            "method": NO_PRESS if full else method_of(info),
            "budget": budget,
            "budget_kind": info["budget_kind"],
            "budget_asked": point.budget_asked,
            "budget_label": info["budget_label"],
            "full_cache": full,
            "degenerate": requests["degenerate"].to_numpy(bool),
            "detected": [None if ids is None else first_report(ids) for ids in token_ids],
        }
    ).astype({"detected": float})
    known = outcomes.reindex(frame["request_id"]).reset_index(drop=True)
    traces = to_traces(table, prefill)
    signals = {**traces.signals, REPEATED: _repeated(token_ids, traces)}
    return pd.concat([frame, known], axis=1), replace(traces, signals=signals)


def method_of(info: Mapping[str, Any]) -> str:
    """A press without its settings: its class, or its name where there is none."""
    method = info["config"]["press"]["method"] or {}
    return str(method.get("_target_", info["press"]))


def _repeated(token_ids: list[list[int] | None], traces: Traces) -> NDArray[np.float32]:
    """The score of the n-gram detector at every token; nan without token ids."""
    parts = [
        np.full(n, np.nan, np.float32) if ids is None else repeated_ngrams(ids)
        for ids, n in zip(token_ids, traces.lengths, strict=True)
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])
