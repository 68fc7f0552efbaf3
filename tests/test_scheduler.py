"""The scheduler: who is prefilled when, who is tried alone, and what memory is promised."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kvx.cli.command import compose
from kvx.config.schema import DecodingConfig
from kvx.data.prompt import PromptParts
from kvx.engines.base import Response
from kvx.engines.kvpress import admission, decode
from kvx.engines.kvpress.account import Account, RowCost, shadow_bytes
from kvx.engines.kvpress.admission import Submission
from kvx.engines.kvpress.batch import Batch
from kvx.engines.kvpress.decode import Decoder
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.scheduler import Finished, Refused, Scheduler, Task
from kvx.engines.kvpress.sequence import Row, StepObserver
from tests.test_engine import make_work

NEW = 6  # tokens to generate


class Prompt(Task):
    """A prompt of its own, of one token repeated."""

    def __init__(self, name: int, size: int = 1) -> None:
        self.name, self.bytes, self.attempts = name, size, 0

    def submission(self) -> Submission:
        self.attempts += 1
        ids = [self.name + 5] * 12
        return Submission(PromptParts(ids, [3]), None, "none", 12, NEW, seed=0, ignore_stop=True)


class Widths(StepObserver):
    """How many rows each step had."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step(self, rows: Sequence[Row], logits: Any, tokens: Any) -> Sequence[Any]:
        self.seen.append(len(rows))
        return ()


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return KVPressEngine(compose()).loaded


def scheduler_of(loaded: LoadedModel, *observers: StepObserver, **options: Any) -> Scheduler[Any]:
    return Scheduler(loaded, DecodingConfig(max_new_tokens=NEW), observers, **options)


def drained(scheduler: Scheduler[Any]) -> list[Any]:
    events = []
    while not scheduler.idle:
        events += scheduler.step().events
    return events


def tokens_of(events: Sequence[Any]) -> dict[int, list[int]]:
    assert all(isinstance(event, Finished) for event in events), events
    return {event.task.name: event.row.tokens for event in events}


@pytest.fixture(scope="module")
def expected(loaded: LoadedModel) -> dict[int, list[int]]:
    """The tokens of three prompts, each generated alone."""
    found = {}
    for name in range(3):
        scheduler = scheduler_of(loaded)
        scheduler.submit([Prompt(name)])
        found |= tokens_of(drained(scheduler))
    assert len({tuple(tokens) for tokens in found.values()}) == 3
    return found


@pytest.mark.parametrize(
    ("interleaved", "order"),
    [(False, "pppddddd"), (True, "pdpdpddd")],
)
def test_a_prefill_goes_first_or_in_turns(
    loaded: LoadedModel, expected: dict[int, list[int]], interleaved: bool, order: str
) -> None:
    scheduler = scheduler_of(loaded, interleaved=interleaved)
    for name in range(3):
        scheduler.submit([Prompt(name)])
    kinds, events = "", []
    while not scheduler.idle:
        step = scheduler.step()
        kinds += "p" if step.prefilled else "d"
        events += step.events
    assert kinds.startswith(order)
    assert tokens_of(events) == expected


def test_tasks_that_fail_together_run_alone_before_anything_else(
    loaded: LoadedModel, expected: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = Widths()
    scheduler = scheduler_of(loaded, widths)
    tasks = [Prompt(name) for name in range(3)]
    scheduler.submit(tasks[:1])
    scheduler.submit(tasks[1:2])
    scheduler.step()
    scheduler.step()
    step, failures = Decoder.step, []

    def once(decoder: Decoder) -> Any:
        if not failures:
            failures.append(len(decoder.rows))
            raise RuntimeError("pretended")
        return step(decoder)

    monkeypatch.setattr(Decoder, "step", once)
    assert scheduler.step().events == []
    assert failures == [2]
    scheduler.submit(tasks[2:])
    widths.seen.clear()
    events = drained(scheduler)
    assert [event.task.name for event in events] == [0, 1, 2]
    assert set(widths.seen) == {1}
    assert tokens_of(events) == expected
    assert [task.attempts for task in tasks] == [2, 2, 1]


def test_a_task_that_fails_alone_is_refused(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(decoder: Decoder) -> Any:
        raise RuntimeError("pretended")

    monkeypatch.setattr(Decoder, "step", fails)
    scheduler = scheduler_of(loaded)
    for name in range(2):
        scheduler.submit([Prompt(name)])
    events = drained(scheduler)
    assert [event.task.name for event in events] == [0, 1]
    assert all(isinstance(e, Refused) and not e.by_press for e in events)
    assert [event.task.attempts for event in events] == [2, 2]


def test_memory_that_lacks_beside_others_is_asked_for_again_alone(
    loaded: LoadedModel, expected: dict[int, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = scheduler_of(loaded)
    tasks = [Prompt(0), Prompt(1)]
    for task in tasks:
        scheduler.submit([task])
    prefill = admission.prefill

    def crowded(*args: Any, **options: Any) -> Any:
        if scheduler.running:
            raise torch.OutOfMemoryError("pretended")
        return prefill(*args, **options)

    monkeypatch.setattr(admission, "prefill", crowded)
    assert tokens_of(drained(scheduler)) == {name: expected[name] for name in (0, 1)}
    assert [task.attempts for task in tasks] == [1, 2]

    def full(*args: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError("pretended")

    monkeypatch.setattr(admission, "prefill", full)
    scheduler.submit([Prompt(2)])
    (refused,) = drained(scheduler)
    assert isinstance(refused, Refused)
    assert refused.task.attempts == 1


def test_nothing_is_said_of_tasks_that_were_dropped(
    loaded: LoadedModel, expected: dict[int, list[int]]
) -> None:
    scheduler = scheduler_of(loaded, max_rows=2)
    tasks = [Prompt(name) for name in range(3)]
    for task in tasks:
        scheduler.submit([task])
    for _ in range(3):
        scheduler.step()
    assert scheduler.running == tasks[:2]
    assert scheduler.waiting == tasks[2:]
    scheduler.drop([tasks[1], tasks[2]])
    assert tokens_of(drained(scheduler)) == {0: expected[0]}


def test_groups_wait_until_their_bytes_fit(loaded: LoadedModel) -> None:
    widths = Widths()
    entry = 2 * sum(layer.self_attn.k_proj.out_features * 4 for layer in loaded.model.model.layers)
    row = entry * (12 + 1 + NEW)
    account = Account(RowCost(entry, 0), cap_bytes=2 * row)
    scheduler = scheduler_of(loaded, widths, account=account)
    tasks = [Prompt(name, row) for name in range(3)] + [Prompt(3, 5 * row)]
    for task in tasks:
        scheduler.submit([task])
    events = drained(scheduler)
    assert [event.task.name for event in events] == [0, 1, 2, 3]
    assert max(widths.seen) == 2  # the last is larger than the cap, and runs alone


@pytest.mark.parametrize(("shadow", "new_tokens"), [("host", 24), ("recompute", 24), ("host", 700)])
def test_guarded_rows_hold_no_more_than_was_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shadow: str, new_tokens: int
) -> None:
    small = [
        "dataset.source.n_examples=20",
        "dataset.sampling.n_per_bin=2",
        "dataset.binning.n_bins=2",
        f"decoding.max_new_tokens={new_tokens}",
        "prompt.query_aware=true",
    ]
    works = [
        make_work(tmp_path, *small, "press=knorm", f"budget.ratio={ratio}",
                  "controller=always_safe", f"guard.shadow={shadow}")
        for ratio in (0.25, 0.5)
    ]  # fmt: skip
    engine = KVPressEngine(works[0].point.config)
    account, held = engine.account(), []

    class Held(StepObserver):
        """What rows hold, and what the account says they hold and may claim."""

        def on_step(self, rows: Sequence[Row], logits: Any, tokens: Any) -> Sequence[Any]:
            decoder = batch.scheduler.decoder
            if decoder.rows:
                holds = decoder.bytes + shadow_bytes(decoder.rows)
                held.append((holds, account.taken(decoder.rows, decoder.bytes)))
            return ()

    batch = Batch(engine.loaded, works[0].point.config, account)
    batch.observers.append(Held())
    rebuild = decode.rebuild

    def rebuilt(loaded: LoadedModel, row: Row, change: Any, old: Any, slot: int) -> Any:
        """The moment at which the row is there twice."""
        decoder = batch.scheduler.decoder
        taken = account.taken(decoder.rows, decoder.bytes)
        bucket, logits = rebuild(loaded, row, change, old, slot)
        held.append((decoder.bytes + bucket.bytes + shadow_bytes(decoder.rows), taken))
        return bucket, logits

    monkeypatch.setattr(decode, "rebuild", rebuilt)
    first = [work.requests[0] for work in works]  # of one example: they share its prefill
    assert len({example.example_id for _, example in first}) == 1
    needed = account.needed([request for request, _ in first], probed=True)
    responses = list(batch.run([type(w)(w.point, w.requests[:1]) for w in works]))
    for response in responses:
        assert isinstance(response, Response)
        assert response.guard is not None
        assert [event.action for event in response.guard.events] == ["raise"]
    assert held
    # a shadow's indices take a few bytes per entry that nobody asked for in advance
    over = [(h, t, needed) for h, t in held if not h <= t <= 1.002 * needed]
    assert over == []
    if shadow == "host":  # of one prompt, which two rows share
        entries = first[0][0].entry.compressed_tokens * account.cost.entry_bytes
        assert entries < account.beside([request for request, _ in first], probed=True)
