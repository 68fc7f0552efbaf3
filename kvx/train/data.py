"""What an experiment has to learn from: its traces, what became of them, and whose prompts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.frames import Experiment
from kvx.config.train import Labels
from kvx.errors import UserError
from kvx.guard.loop_follower import first_report
from kvx.guard.trace_arrays import NO_PRESS, Traces
from kvx.identity.hazard_files import prompt_hash
from kvx.learning.baselines import repeated_ngrams
from kvx.learning.labels import Targets, targets
from kvx.scoring.catastrophes import pair
from kvx.store.catalog import PointRecord
from kvx.store.traces import Holds, holds, joined, read_traces, to_traces

REPEATED = "repeated_ngrams"


@dataclass(frozen=True)
class Data:
    """Traces with what is known of their responses; `frame` [n] has one row per trace.

    Its columns: request_id, point_id, prompt (the cluster: never on two sides of a split),
    dataset, model, press, method (presses of one method differ in their settings only), budget,
    full_cache, degenerate, paired, capped, looping, detected (the token with which a loop is first
    reported as it happens; nan: never, or no token ids), and onset, unplaced and excess (see
    `labels.targets`).
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

    @cached_property
    def compressed(self) -> NDArray[np.bool_]:
        """The traces that figures are about: a full cache has nothing that compression caused."""
        return ~self.frame["full_cache"].to_numpy(bool)

    @cached_property
    def strata(self) -> dict[str, str]:
        """Each prompt's dataset, and whether anything happened to it: dealt out evenly."""
        happened = self.frame.assign(event=self.about.events).groupby("prompt")
        return {
            str(prompt): f"{rows['dataset'].iloc[0]} {int(rows['event'].any())}"
            for prompt, rows in happened
        }

    def take(self, rows: NDArray[np.bool_]) -> "Data":
        return Data(
            self.frame[rows].reset_index(drop=True), self.traces.take(rows), self.about.take(rows)
        )

    def with_labels(self, labels: Labels) -> "Data":
        """The same traces with what counts as an event chosen anew."""
        f = self.frame
        about = targets(f["onset"], f["unplaced"], f["excess"], labels is Labels.excess)
        return replace(self, about=about)

    def until_detection(self) -> "Data":
        """The same traces with events that start where their loop can be detected."""
        at = np.where(self.about.events, self.frame["detected"].to_numpy(float), np.nan)
        return replace(self, about=replace(self.about, onset=at))


def load(experiment: Experiment, labels: Labels, degenerate: bool) -> Data:
    """Every response with a trace, full caches once per example and variant.

    A compressed response whose twin failed is left out: what compression caused is not known.
    Raises `UserError` if traces are missing or too light, or compressed points have no full-cache
    twin.
    """
    points = [p for p in experiment.points if p.info["controller"] == "none"]
    check_twins(experiment, points)
    chosen = [p for p in points if not p.is_full_cache or p.id in _full_caches(points)]
    outcomes = outcomes_of(experiment)
    frames, traces = [], []
    for point in chosen:
        frame, found = _of_point(experiment, point, outcomes, degenerate)
        if len(frame):
            frames.append(frame)
            traces.append(found)
    if not frames:
        raise UserError(f"{experiment.dir}: no response to learn from")
    data = Data(pd.concat(frames, ignore_index=True), joined(traces), _NOTHING)
    return data.with_labels(labels)


_NOTHING = Targets(np.zeros(0, np.int8), np.zeros(0))


def check_twins(experiment: Experiment, points: list[PointRecord]) -> None:
    """Raises `UserError` for a compressed point without a full-cache run of the same prompts."""
    for point in points:
        if experiment.full_cache(point) is None:
            raise UserError(
                f"{experiment.dir}: {point.id} has no baseline; run it with budget=1.0 too "
                "(press=none, or the same press)"
            )


def outcomes_of(experiment: Experiment) -> pd.DataFrame:
    """By request id: `onset` of its loop (nan: none), `unplaced`, `excess`, `capped`, `looping`,
    and whether there is a twin's response beside it (`paired`).

    Reaching the cap counts as a catastrophe only where the twin did not.
    """
    seen = experiment.catastrophes
    twins = {p.id: t.id for p in experiment.points if (t := experiment.full_cache(p)) is not None}
    of_twin = seen["point_id"].map(twins)
    compared = seen.assign(twin_point_id=of_twin)[of_twin.notna() & (of_twin != seen["point_id"])]
    paired = pair(compared, seen).set_index("request_id").reindex(seen["request_id"])

    def flag(name: str) -> NDArray[np.bool_]:
        return paired[name].astype("boolean").fillna(False).to_numpy(bool)

    # an onset counted in words cannot be placed in a trace of tokens
    in_tokens = (seen["unit"] == "token").to_numpy()
    onset = seen["loop_onset"].astype(float).where(in_tokens)
    lost = flag("excess_non_termination") | flag("amnesia")
    return pd.DataFrame(
        {
            "onset": onset.to_numpy(float),
            "unplaced": lost | (seen["looping"].to_numpy(bool) & ~in_tokens),
            "excess": flag("excess_looping"),
            "capped": seen["cap_reached"].to_numpy(bool),
            "looping": seen["looping"].to_numpy(bool),
            "paired": paired["twin_any"].notna().to_numpy(),
        },
        index=pd.Index(seen["request_id"], name="request_id"),
    )


def prompt_ids(data: Data) -> list[str]:
    """What a card says of each trace's prompt: enough to know it again."""
    names = data.frame["prompt"]
    ids = {name: prompt_hash(name) for name in names.unique()}
    return [ids[name] for name in names]


def _full_caches(points: list[PointRecord]) -> set[str]:
    """One full-cache point of each variant and seed: the others generated the same."""
    best: dict[tuple[str, int], PointRecord] = {}
    for point in points:
        if point.is_full_cache:
            key = (point.info["variant_id"], point.info["seed"])
            if key not in best or point.info["press"] == NO_PRESS:
                best[key] = point
    return {point.id for point in best.values()}


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
    check_traces(point, Counter(holds(table)))
    full, token_ids = point.is_full_cache, table["token_ids"].to_pylist()
    compressed_tokens = requests["compressed_tokens"].to_numpy(float)
    budget = np.full(len(requests), info["budget"], float) if info["budget"] is not None else (
        np.minimum(1.0, info["budget_tokens"] / compressed_tokens)
    )  # fmt: skip
    prefill: dict[str, NDArray[Any]] = {
        "budget": budget.astype(np.float32),
        "prompt_tokens": requests["prompt_tokens"].to_numpy(np.float32),
        "kept_tokens": (budget * compressed_tokens).astype(np.float32),
        "max_new_tokens": requests["max_new_tokens"]
        .fillna(info["config"]["decoding"]["max_new_tokens"])
        .to_numpy(np.float32),
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
            "detected": [_detected(ids) for ids in token_ids],
        }
    )
    known = outcomes.reindex(frame["request_id"]).reset_index(drop=True)
    traces = to_traces(table, prefill)
    signals = {**traces.signals, REPEATED: _repeated(token_ids, traces)}
    return pd.concat([frame, known], axis=1), replace(traces, signals=signals)


def method_of(info: Mapping[str, Any]) -> str:
    """What a press is without its settings: its class, or its name where there is none."""
    method = info["config"]["press"]["method"] or {}
    return str(method.get("_target_", info["press"]))


def _repeated(token_ids: list[list[int] | None], traces: Traces) -> NDArray[np.float32]:
    """The score of the n-gram detector at every token; nan without token ids."""
    parts = [
        np.full(n, np.nan, np.float32) if ids is None else repeated_ngrams(ids)
        for ids, n in zip(token_ids, traces.lengths, strict=True)
    ]
    return np.concatenate([np.zeros(0, np.float32), *parts])


def _detected(token_ids: list[int] | None) -> float:
    found = None if token_ids is None else first_report(token_ids)
    return np.nan if found is None else float(found)


def check_traces(point: PointRecord, kinds: Counter[Holds]) -> None:
    """Raises `UserError` unless every response has the signals to learn from."""
    if kinds[Holds.NOTHING]:
        raise UserError(
            f"{point.dir}: no traces of {kinds[Holds.NOTHING]} responses; run kvx.run with "
            "signals=full under another experiment_name"
        )
    if kinds[Holds.LIGHT]:
        raise UserError(f"{point.dir}: its traces are light; run kvx.run with signals=full")
