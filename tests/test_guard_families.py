"""A guarded row on models of every kind of layer: what is given back is what was never dropped."""

import gc
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import kvpress
import pytest
import torch
from families import make

from kvx.engines.kvpress.cache import Bucket
from kvx.engines.kvpress.forward import extend, forward
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.prefill import prefill
from kvx.engines.kvpress.press_object import ObjectPress
from kvx.engines.kvpress.prompt_row import PromptRow
from kvx.engines.kvpress.recompute import Recompute
from kvx.engines.kvpress.sequence import Row, Source
from kvx.engines.kvpress.shadow import FULL, PromptShadow, row_shadow
from kvx.engines.kvpress.streams import RandomStream

# a family of each kind of layer that keeps something
KINDS = (
    "llama",
    "gemma3_text",
    "gpt_oss",
    "llama4",
    "gemma3n",
    "qwen3_next",
    "lfm2",
    "deepseek_v3",
)
PROMPT, REST, STEPS = 290, 5, 8
NOMINAL, RAISED = 0.25, 0.6


@dataclass
class Running:
    """A guarded row in the middle of its answer, and where its prompt comes from."""

    loaded: LoadedModel
    ids: list[int]
    bucket: Bucket
    row: Row
    sources: dict[str, Source]
    said: list[int]


def prompt_row(loaded: LoadedModel, budget: float) -> PromptRow:
    press = None if budget == FULL else ObjectPress(kvpress.KnormPress()).at(budget)
    return PromptRow(press, round(PROMPT * budget), RandomStream(0, loaded.devices))


def following(loaded: LoadedModel, bucket: Bucket, ids: Sequence[int]) -> torch.Tensor:
    """Logits [vocab] after `ids`, which follow the prompt in the only row of `bucket`."""
    logits = extend(loaded, bucket, Row(None, PROMPT), ids, at_once=3)
    assert logits is not None
    return logits[0]


def never_compressed(running: Running, budget: float, ids: Sequence[int]) -> torch.Tensor:
    """As `following`, of a row whose prompt was at `budget` from the start."""
    row = prompt_row(running.loaded, budget)
    (bucket,) = prefill(running.loaded, running.ids, [row], REST + STEPS, alone=False).buckets
    return following(running.loaded, bucket, ids)


@pytest.fixture(scope="module", params=KINDS)
def running(request: pytest.FixtureRequest) -> Any:
    with torch.inference_mode():
        model = make(request.param)
        loaded = LoadedModel(model, None, model.device, frozenset())
        draw = torch.Generator().manual_seed(7)
        ids = torch.randint(5, 200, (PROMPT,), generator=draw).tolist()
        row = prompt_row(loaded, NOMINAL)
        row.shadow = row_shadow(PromptShadow(loaded.device), NOMINAL, [RAISED])
        other = prompt_row(loaded, FULL)
        caches = prefill(loaded, ids, [row, other], REST + STEPS, alone=False)
        assert row.error is None
        bucket = next(
            b for b, members in zip(caches.buckets, caches.rows, strict=True) if 0 in members
        )
        sequence = Row(None, PROMPT)
        rest = torch.randint(5, 200, (REST,), generator=draw)
        logits = forward(loaded, [bucket], [sequence], rest[None])[:, -1]
        said = []
        for _ in range(STEPS - 2):
            said.append(int(logits.argmax()))
            logits = forward(loaded, [bucket], [sequence], torch.tensor([[said[-1]]]))[:, -1]
        assert row.press is not None
        again = Recompute(loaded, ids, row.press, NOMINAL, 0, caches.logits)
        sources: dict[str, Source] = {"shadow": row.shadow, "recompute": again}
        yield Running(loaded, ids, bucket, sequence, sources, [*rest.tolist(), *said])


@pytest.mark.parametrize("budget", [NOMINAL, RAISED, FULL])
@pytest.mark.parametrize("name", ["shadow", "recompute"])
@torch.inference_mode()
def test_a_rebuilt_row_equals_one_that_was_always_at_its_new_budget(
    running: Running, name: str, budget: float
) -> None:
    bucket = running.sources[name].bucket(budget, REST + STEPS)
    got = following(running.loaded, bucket, running.said)
    wanted = never_compressed(running, budget, running.said)
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_a_row_that_gets_its_prompt_back_keeps_what_it_has_appended(running: Running) -> None:
    """At its own budget it goes on as if nothing had happened, in a bucket of its own."""
    assert layers_of(running.loaded.model).obstacle is None
    bucket = running.sources["shadow"].bucket(NOMINAL, REST + STEPS)
    bucket.continue_from(running.bucket, 0)
    position, token = running.row.position, torch.tensor([[9]])
    got = forward(running.loaded, [bucket], [Row(None, position)], token)
    rebuilt = running.sources["shadow"].bucket(NOMINAL, REST + STEPS)
    wanted = following(running.loaded, rebuilt, [*running.said, 9])
    torch.testing.assert_close(got[0, -1], wanted, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_rows_that_are_gone_leave_no_memory_behind(running: Running) -> None:
    """Freed with the last reference: a collector of cycles counts objects, not their bytes."""
    loaded, ids = running.loaded, running.ids[:20]
    gc.collect()
    gc.disable()
    try:
        row = PromptRow(None, len(ids), RandomStream(0, loaded.devices))
        (bucket,) = prefill(loaded, ids, [row], 2, alone=False).buckets
        forward(loaded, [bucket], [Row(None, len(ids))], torch.tensor([[9]]))
        gone = weakref.ref(bucket)
        del bucket
        assert gone() is None
    finally:
        gc.enable()
