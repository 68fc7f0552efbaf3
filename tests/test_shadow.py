"""The shadow store: caches built from it, against caches that were never compressed."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.forward import extend
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.prefill import prefill
from kvx.engines.kvpress.press import PointPress
from kvx.engines.kvpress.prompt_row import PromptRow
from kvx.engines.kvpress.recompute import Recompute
from kvx.engines.kvpress.sequence import Row
from kvx.engines.kvpress.shadow import PromptShadow, RowShadow, row_shadow
from kvx.engines.kvpress.streams import RandomStream
from kvx.points import Request
from tests.test_engine import recall

ROOM, SAID = 40, [5, 9, 200, 17, 5, 9, 200, 18, 33, 7, 7, 41]
LEVELS = (0.5, 1.0)


@dataclass
class Prompt:
    """A compressed prompt with its shadow, and the same one never compressed."""

    loaded: LoadedModel
    request: Request
    ids: list[int]
    row: PromptRow
    shadow: RowShadow


def compressed(tmp_path: Path, *press: str) -> Prompt:
    work = recall(tmp_path, *press, "budget.ratio=0.25", "prompt.query_aware=true", n=1)
    loaded = KVPressEngine(work.point.config).loaded
    request = work.requests[0][0]
    n = request.entry.compressed_tokens
    ids = torch.randint(5, 300, (n,), generator=torch.Generator().manual_seed(0)).tolist()
    shadow = row_shadow(PromptShadow(loaded.device), 0.25, LEVELS)
    row = PromptRow(
        PointPress(request.point, n),
        request.point.kept_tokens(n),
        RandomStream(3, loaded.device),
        shadow=shadow,
    )
    with torch.inference_mode():
        prefill(loaded, ids, [row], ROOM, alone=False)
    assert row.error is None
    return Prompt(loaded, request, ids, row, shadow)


def said(prompt: Prompt, budget: float, at_once: int, shadow: bool = True) -> torch.Tensor:
    """Logits [1, vocab] after `SAID` on a cache from the shadow, or on one prefilled for this."""
    n = len(prompt.ids)
    with torch.inference_mode():
        if shadow:
            bucket = prompt.shadow.bucket(budget, ROOM)
        else:
            press = None if budget == 1.0 else PointPress(prompt.request.point, n, budget)
            fresh = PromptRow(press, n, RandomStream(3, prompt.loaded.device))
            (bucket,) = prefill(prompt.loaded, prompt.ids, [fresh], ROOM, alone=False).buckets
        logits = extend(prompt.loaded, bucket, Row(prompt.request, n), SAID, at_once)
    assert logits is not None
    return logits


@pytest.mark.parametrize("press", ["knorm", "streaming", "expected_attention"])
def test_restored_and_recomputed_equals_never_compressed(tmp_path: Path, press: str) -> None:
    prompt = compressed(tmp_path, f"press={press}")
    never = said(prompt, 1.0, 1, shadow=False)
    assert torch.equal(said(prompt, 1.0, 1), never)  # token by token, bit by bit
    assert (said(prompt, 1.0, len(SAID)) - never).abs().max() <= 1e-4  # as one chunk
    assert not torch.equal(said(prompt, 0.25, 1), never)


@pytest.mark.parametrize(
    "press",
    [
        ("press=knorm",),
        ("press=streaming",),  # scores depend on the budget
        ("press=random",),  # draws
        ("press=pyramidkv", "press.method.window_size=4"),  # layers keep different numbers
        ("press=chunkkv", "press.method.press.window_size=4", "press.method.chunk_length=5"),
    ],
    ids=lambda p: p[0],
)
@pytest.mark.parametrize("budget", [0.25, 0.5])
def test_any_budget_is_what_the_press_itself_keeps(
    tmp_path: Path, press: tuple[str, ...], budget: float
) -> None:
    prompt = compressed(tmp_path, *press)
    assert torch.equal(said(prompt, budget, 1), said(prompt, budget, 1, shadow=False))


def test_indices_are_kept_where_they_tell_the_entries_else_the_entries(tmp_path: Path) -> None:
    by_index, by_entry = (
        compressed(tmp_path, "press=knorm"),
        compressed(
            tmp_path, "press=chunkkv", "press.method.press.window_size=4",
            "press.method.chunk_length=5",
        ),
    )  # fmt: skip
    own = [p.shadow.bytes - p.shadow.prompt.bytes for p in (by_index, by_entry)]
    assert 0 < 10 * own[0] < own[1] < by_entry.shadow.prompt.bytes
    assert by_index.shadow.prompt.bytes == by_index.row.bytes * len(by_index.ids) // int(
        by_index.row.entries[0]
    )


def test_recompute_makes_the_same_caches_without_a_copy(tmp_path: Path) -> None:
    prompt = compressed(tmp_path, "press=knorm")
    assert prompt.row.press is not None
    source = Recompute(
        prompt.loaded, prompt.ids, prompt.row.press, 0.25, 3, prompt.shadow.logits
    )  # fmt: skip
    assert source.bytes == 0
    with torch.inference_mode():
        for budget in (0.25, 0.5, 1.0):
            bucket = source.bucket(budget, ROOM)
            logits = extend(
                prompt.loaded, bucket, Row(prompt.request, len(prompt.ids)), SAID, 1
            )  # fmt: skip
            assert logits is not None
            assert torch.equal(logits, said(prompt, budget, 1))


def test_a_budget_that_was_not_prepared_is_not_made_up(tmp_path: Path) -> None:
    prompt = compressed(tmp_path, "press=knorm")
    with pytest.raises(KeyError):
        prompt.shadow.bucket(0.3, ROOM)
