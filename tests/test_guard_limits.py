"""What a guard must never do: exceed limits, lose answers, act where nothing is left to be done."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kvpress import KnormPress
from transformers import AutoModelForCausalLM

from kvx.config.folders import package_dir
from kvx.config.guard import GuardConfig
from kvx.engines.base import Response
from kvx.engines.kvpress import decode
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.sequence import Rebuild, Row, StepObserver, Stop
from kvx.guard import guarded
from kvx.guard.controllers import Gate, Random
from kvx.guard.controllers.base import policy
from kvx.guard.live import Change, SequenceGuard
from tests.test_engine import make_work
from tests.test_guard_live import KNORM, NONE, SMALL

NERVOUS = Random(name="nervous", rate=0.4, cooldown=1, j=1, rollback_tokens=2)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(package_dir() / "assets" / "tiny_recall")


@pytest.mark.parametrize("rollback", [True, False])
@pytest.mark.parametrize("limit", [1, 2, 5, 9, 14])
def test_no_answer_is_longer_than_it_may_be(model: Any, limit: int, rollback: bool) -> None:
    ids = torch.randint(5, 300, (24, 60), generator=torch.Generator().manual_seed(1))
    settings = Random(**{**vars(NERVOUS), "rollback": rollback})
    guard = guarded(model, KnormPress(0.7), settings, max_interventions=50)
    out = guard.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit,
        do_sample=False, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    assert out.shape == (24, 60 + limit)
    assert any(events for events in guard.events) or limit == 1


@given(st.lists(st.integers(0, 400), max_size=80), st.integers(1, 4), st.booleans())
def test_after_the_last_token_only_what_takes_some_back(
    tokens: list[int], most: int, rollback: bool
) -> None:
    settings = Random(**{**vars(NERVOUS), "rollback": rollback})
    guard = SequenceGuard(policy(settings), GuardConfig(max_interventions=most), 0.25, "k")
    for i, token in enumerate(tokens):
        last = i % 3 == 2
        change = guard.step(token, last=last)
        if change is None:
            continue
        assert not (last and change.n_kept >= len(guard.tokens))
        assert change.action != "recompress" or guard.interventions < most
        guard.carried_out(change, 0, 0.0)


def test_what_rounds_to_its_own_budget_is_no_raise() -> None:
    gate = Gate(name="gate", prefill_gate_nats=1.0)
    guard = SequenceGuard(policy(gate), GuardConfig(ladder=[0.2, 0.5]), 1 - (1 - 0.2), "k")
    change = guard.gate(5.0)
    assert change is not None
    assert change.budget == 0.5


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory: planted")


def test_a_rebuild_that_fails_while_rows_join_costs_only_their_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [NONE, KNORM, (*KNORM, "controller=always_safe"), (*KNORM, "controller=reactive")]
    works = [make_work(tmp_path, *SMALL, *point) for point in points]
    monkeypatch.setattr(decode, "rebuild", out_of_memory)
    engine = KVPressEngine(works[0].point.config)
    items = list(engine.generate(works))
    requests = [request.id for work in works for request, _ in work.requests]
    assert sorted(i.request.id for i in items if isinstance(i, Response)) == sorted(requests)
    for item in items:
        assert isinstance(item, Response)
        controller = item.request.point.config.controller.name
        if controller in ("none", "always_safe"):  # reactive may want a rebuild, or not
            assert item.has_response is (controller == "none")


class Ends(StepObserver):
    """Ends every row at its third token, as a stop string does, while a guard wants it back."""

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Any]:
        back = Change(1.0, 1, "roll_back", "hazard")
        at = [row for row in rows if len(row.tokens) == 3]
        return [action for row in at for action in (Rebuild(row, back), Stop(row, "stop"))]


def test_what_an_action_has_ended_is_not_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = make_work(tmp_path, *SMALL, *KNORM, "controller=always_safe")
    plain = decode.Decoder.__init__

    def watched(self: Any, loaded: Any, config: Any, observers: Sequence[Any]) -> None:
        plain(self, loaded, config, [*observers, Ends()])

    monkeypatch.setattr(decode.Decoder, "__init__", watched)
    for item in KVPressEngine(work.point.config).generate([work]):
        assert isinstance(item, Response)
        assert item.token_ids is not None
        assert len(item.token_ids) <= 3
        assert item.guard is not None
        assert [event.action for event in item.guard.events] == ["raise"]
