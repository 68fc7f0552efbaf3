"""The live guard: an observer that lets controllers take rows back and raise their budgets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kvx.config.controller import ControllerConfig
from kvx.config.guard import GuardConfig, Shadow
from kvx.config.identity import is_guarded
from kvx.engines.kvpress.forward import extend
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.observers import StepSignals
from kvx.engines.kvpress.prompt_row import PromptRow
from kvx.engines.kvpress.recompute import Recompute
from kvx.engines.kvpress.sequence import Action, Prefill, Rebuild, Row, Source, StepObserver
from kvx.engines.kvpress.shadow import FULL, PromptShadow, RowShadow, row_shadow
from kvx.guard.controllers.base import Policy, Thresholds, policy
from kvx.guard.live import Change, SequenceGuard
from kvx.guard.signals import divergence_nats
from kvx.guard.trace_arrays import NO_PRESS
from kvx.identity import hazard_files
from kvx.points import Request
from kvx.scoring.repetition import Repetition

if TYPE_CHECKING:  # only a controller with a forecast loads them
    from kvx.guard.forecast import Forecaster
    from kvx.guard.hazard import HazardModel

COUNTED = ("repetition_count", "period")  # features counted over the tail of a sequence


# by folder, with its content's hash: an engine keeps the model that it started with
_hazard_models: dict[Path, tuple[str, "HazardModel"]] = {}


def hazard_model(folder: str | None) -> "HazardModel":
    """The model of a folder, or the packaged one. Raises `UserError` as `HazardModel.load` does."""
    found = hazard_files.folder_of(folder)
    if found not in _hazard_models:
        from kvx.guard.hazard import HazardModel

        content = hazard_files.identity(found)
        _hazard_models[found] = content, HazardModel.load(found)
    return _hazard_models[found][1]


def renew_hazard_models() -> None:
    """Forget models whose files have changed. Called when an engine starts."""
    for folder, (content, _) in list(_hazard_models.items()):
        if not hazard_files.is_still(folder, content):
            del _hazard_models[folder]


def live_policy(controller: ControllerConfig, guard: GuardConfig) -> Policy:
    """`controller` with the thresholds of its hazard model, if it has one."""
    if not controller.needs_hazard:
        return policy(controller)
    return policy(controller, Thresholds.of(hazard_model(guard.model).card))


def guard_of(request: Request) -> Callable[[], SequenceGuard] | None:
    """Makes the guard of this request; None without a controller."""
    config = request.point.config
    if not is_guarded(config):
        return None
    nominal = request.point.kept_share(request.entry.compressed_tokens)
    policy = live_policy(config.controller, config.guard)
    return partial(SequenceGuard, policy, config.guard, nominal, request.id)


def shadow_of(guard: SequenceGuard, prompt: PromptShadow) -> RowShadow | None:
    """The shadow that a prefill fills for a sequence; None if it keeps no shadow."""
    if guard.config.shadow is not Shadow.host:
        return None
    return row_shadow(prompt, guard.base, guard.levels)


def source_of(
    loaded: LoadedModel,
    ids: Sequence[int],
    prompt: PromptRow,
    guard: SequenceGuard,
    logits: torch.Tensor,
) -> Source | None:
    """Where the prompt `ids` of a prefilled row can be taken from again; None if it cannot."""
    if guard.config.shadow is Shadow.recompute and prompt.press is not None:
        seed = prompt.stream.seed
        return Recompute(loaded, ids, prompt.press, guard.base, seed, logits)
    return prompt.shadow


@dataclass
class _Guarded:
    """A guarded row, and what was known of it before its first token."""

    row: Row
    known: dict[str, Any]
    full_logits: torch.Tensor | None
    forecaster: "Forecaster | None"
    unprobed: bool = False  # until its second token is chosen
    full_second: torch.Tensor | None = None  # the full cache's logits [vocab] there
    tail: Repetition | None = None  # if a feature or controller reads its counts

    def count(self, token: int) -> tuple[int, int]:
        """Repetition count and period after `token`; 0 if nothing reads them."""
        return (0, 0) if self.tail is None else self.tail.push(token)


class LiveGuard(StepObserver):
    """Asks the guards of rows what to do. Rows without one cost nothing."""

    def __init__(self, loaded: LoadedModel, signals: StepSignals) -> None:
        self.loaded, self._signals = loaded, signals
        self._rows: dict[int, _Guarded] = {}
        self._forecasters: dict[str | None, Forecaster] = {}
        self._thinking: frozenset[int] = frozenset()

    def on_prefill(self, rows: Sequence[Row], prefills: Sequence[Prefill]) -> Sequence[Action]:
        actions: list[Action] = []
        for row, prefill in zip(rows, prefills, strict=True):
            if row.guard is None:
                continue
            self._rows[id(row)] = seen = self._begin(row, row.guard, prefill)
            probe = seen.known["probe_kl_nats"]
            change = row.guard.gate(float(probe[-1]) if len(probe) else np.nan)
            if change is not None:
                actions.append(Rebuild(row, change))
        return actions

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Action]:
        actions: list[Action] = []
        watched = []
        for i, row in enumerate(rows):
            if row.guard is None:
                continue
            raised = self._first_step(self._rows[id(row)], row.guard, logits[i])
            if raised is None:
                watched.append(i)
            else:
                actions.append(Rebuild(row, raised))
        if not watched:
            return actions
        ids = [rows[i].tokens[-1] for i in watched]
        seen = [self._rows[id(rows[i])] for i in watched]
        repeated = [s.count(token) for s, token in zip(seen, ids, strict=True)]
        entropy = np.full(len(watched), np.nan)
        hazard = np.full(len(watched), np.nan)
        if any(_reads_entropy(s) for s in seen):
            signals = self._signals.of(logits, tokens)
            entropy = signals.entropy_nats[watched]
            self._forecast(seen, hazard, watched, signals, repeated, ids)
            hazard[[s.unprobed for s in seen]] = np.nan  # computed without the probe
        for i, item in enumerate(seen):
            row, guard = item.row, item.row.guard
            assert guard is not None
            end = row.finish_reason
            ended, last = end not in (None, "length"), end == "length"
            change = guard.step(
                ids[i], float(hazard[i]), float(entropy[i]), repeated[i][0], ended, last
            )
            if change is not None:
                actions.append(Rebuild(row, change))
        return actions

    def on_rebuilt(self, row: Row, logits: torch.Tensor | None) -> Sequence[Action]:
        seen = self._rows.get(id(row))
        if seen is None or row.guard is None:
            return ()
        again: Change | None = None
        if logits is not None and seen.full_logits is not None:
            nats = divergence_nats(seen.full_logits, logits[0]).item()
            if row.guard.events[-1].action == "raise":  # of its own budget, from now on
                seen.known["probe_kl_nats"] = [nats]
                same = (seen.full_logits.argmax() == logits[0].argmax()).item()
                seen.known["probe_same_top1"] = [bool(same)]
                again = row.guard.gate(nats)
        if again is not None:
            return [Rebuild(row, again)]
        if seen.tail is not None:
            seen.tail = Repetition()
            for token in row.tokens:
                seen.tail.push(token)
        if seen.forecaster is not None:
            known = _at(seen.known, row.guard.budget)
            seen.forecaster.rewind(id(row), len(row.tokens), known)
        return ()

    def _begin(self, row: Row, guard: SequenceGuard, prefill: Prefill) -> _Guarded:
        assert row.origin is not None
        # without a rest, the caches differ from the second token on
        rest = bool(row.origin.rest_ids)
        probe = prefill.probe if rest else None
        known = {
            "probe_kl_nats": [] if probe is None else probe.kl_nats,
            "probe_same_top1": [] if probe is None else probe.same_top1,
            "score_evicted": np.nan if prefill.score_evicted is None else prefill.score_evicted,
            "budget": guard.budget,
            "prompt_tokens": prefill.prompt_tokens,
            "kept_tokens": guard.budget * prefill.compressed_tokens,
            "max_new_tokens": row.origin.max_new_tokens,
            "press": row.origin.press,
        }
        forecaster = None
        if guard.policy.config.needs_hazard:
            name = guard.config.model
            if name not in self._forecasters:
                from kvx.guard.forecast import Forecaster

                self._forecasters[name] = Forecaster(hazard_model(name))
            forecaster = self._forecasters[name]
            forecaster.add(id(row), known)
            if "thinking" in forecaster.needs:
                self._thinking = self.loaded.thinking_ids  # computed here, not during a step
        reads = forecaster is not None and any(
            n.startswith("probe_") for n in forecaster.model.names
        )
        comparable = row.origin.source is not None and guard.budget < FULL
        unprobed = not rest and comparable and (guard.gated or reads)
        full_logits = prefill.full_logits if rest else None
        counts = guard.policy.config.reads_repetition
        counts |= forecaster is not None and not forecaster.needs.isdisjoint(COUNTED)
        tail = Repetition() if counts else None
        return _Guarded(row, known, full_logits, forecaster, unprobed, tail=tail)

    def _first_step(
        self, seen: _Guarded, guard: SequenceGuard, logits: torch.Tensor
    ) -> Change | None:
        """The probe of a row whose whole prompt is compressed: `logits` [vocab] chose its second
        token."""
        row = seen.row
        if not seen.unprobed or len(row.tokens) < 2:
            return None
        if guard.budget != guard.base or guard.budget >= FULL:  # relaxed already
            seen.unprobed, seen.full_second = False, None
            return None
        if seen.full_second is None:
            seen.full_second = full_cache_logits(self.loaded, row)
        nats = divergence_nats(seen.full_second, logits).item()
        seen.known["probe_kl_nats"] = [nats]
        same = (seen.full_second.argmax() == logits.argmax()).item()
        seen.known["probe_same_top1"] = [bool(same)]
        change = guard.gate(nats, row.tokens[-1])
        if change is None:
            seen.unprobed, seen.full_second = False, None
            if seen.forecaster is not None:
                seen.forecaster.rewind(id(row), 1, _at(seen.known, guard.budget))
        return change

    def _forecast(
        self,
        seen: Sequence[_Guarded],
        hazard: np.ndarray,
        watched: Sequence[int],
        signals: Any,
        repeated: Sequence[tuple[int, int]],
        ids: Sequence[int],
    ) -> None:
        """Fill in the hazard of the rows that have a model, model by model."""
        for forecaster in self._forecasters.values():
            own = [i for i, s in enumerate(seen) if s.forecaster is forecaster]
            if not own:
                continue
            at = [watched[i] for i in own]
            counted = {
                COUNTED[0]: [repeated[i][0] for i in own],
                COUNTED[1]: [repeated[i][1] for i in own],
                "thinking": [ids[i] in self._thinking for i in own],
            }
            given = {
                name: np.array(counted[name], np.float32)
                if name in counted
                else getattr(signals, name)[at]
                for name in forecaster.needs
            }
            hazard[own] = forecaster.step([id(seen[i].row) for i in own], given)

    def on_end(self, rows: Sequence[Row]) -> None:
        ended = [id(row) for row in rows if id(row) in self._rows]
        for forecaster in self._forecasters.values():
            forecaster.forget(ended)
        for key in ended:
            del self._rows[key]


def full_cache_logits(loaded: LoadedModel, row: Row) -> torch.Tensor:
    """Logits [vocab] of the full cache after the first token of `row`, whose prompt has no rest."""
    origin = row.origin
    assert origin is not None
    assert origin.source is not None
    bucket = origin.source.bucket(FULL, 1)
    logits = extend(loaded, bucket, Row(None, origin.n_compressed), row.tokens[:1], 1)
    assert logits is not None
    return logits[0]


def _reads_entropy(seen: _Guarded) -> bool:
    guard = seen.row.guard
    assert guard is not None
    return guard.policy.config.reads_entropy


def _at(known: dict[str, Any], budget: float) -> dict[str, Any]:
    """What is known of a row when its prompt is at `budget`."""
    tokens = known["kept_tokens"] * budget / known["budget"]
    found = {**known, "budget": budget, "kept_tokens": tokens}
    if budget >= FULL:  # as the hazard model saw a full cache in training
        n = len(known["probe_kl_nats"])
        found |= {"probe_kl_nats": [0.0] * n, "probe_same_top1": [True] * n}
        found |= {"score_evicted": np.nan, "press": NO_PRESS}
    return found
