"""Which positions a press kept, found again among a layer's entries."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kvx.cli.command import compose
from kvx.data.example import Example
from kvx.data.prompt import PromptBuilder
from kvx.engines.kvpress.kept import (
    KeptPositions,
    LayerEntries,
    unmasked_positions,
    watch_positions,
)
from kvx.engines.kvpress.layers import CachedLayer
from kvx.engines.kvpress.shadow import gather
from kvx.report.page.kept_shown import LEVELS, levels

HEADS, N, KEPT, SIZE = 3, 50, 20, 8


def layer(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values [1, heads, n, size], and indices [1, heads, kept] in no order."""
    made = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(1, HEADS, N, SIZE, generator=made).to(dtype) for _ in range(2))
    chosen = torch.rand(1, HEADS, N, generator=made).argsort(-1)[..., :KEPT]
    return keys, values, chosen


def marks_of(chosen: torch.Tensor) -> torch.Tensor:
    return torch.zeros(HEADS, N, dtype=torch.bool).scatter_(1, chosen[0], True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_kept_is_found_by_its_bits(dtype: torch.dtype) -> None:
    keys, values, chosen = layer(dtype)
    kept = gather(keys, chosen), gather(values, chosen)
    found = LayerEntries((keys, values)).positions(kept)
    assert found is not None
    assert torch.equal(found, marks_of(chosen))


def test_a_press_that_changes_keys_or_values_is_told_by_the_other() -> None:
    keys, values, chosen = layer()
    entries = LayerEntries((keys, values))
    turned = gather(keys, chosen).roll(1, -1), gather(values, chosen)
    merged = gather(keys, chosen), gather(values, chosen) + 1
    for kept in (turned, merged):
        found = entries.positions(kept)
        assert found is not None
        assert torch.equal(found, marks_of(chosen))
    assert entries.positions((turned[0], merged[1])) is None


def test_entries_that_are_alike_are_not_guessed_between() -> None:
    keys, values, chosen = layer()
    values[0, 1, 3] = values[0, 1, 4]
    entries = LayerEntries((keys, values))
    own = gather(keys, chosen), gather(values, chosen)
    assert entries.positions(own) is not None  # their keys differ
    assert entries.positions((own[0] + 1, own[1])) is None


def test_shares_are_over_heads_of_the_layers_that_could_be_told() -> None:
    found = KeptPositions()
    assert found.percent() is None
    found.add(torch.tensor([[True, True, False], [True, False, False]]))
    found.add(None)
    found.add(torch.tensor([[True, False, False]]))
    assert found.percent() == [100, 33, 0]


def test_what_a_press_hides_was_not_kept() -> None:
    hidden = (torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([2, 0]))
    module = SimpleNamespace(masked_key_indices=hidden)
    layers = [CachedLayer(0, module, 1), CachedLayer(1, SimpleNamespace(), 1)]
    found = unmasked_positions(layers, [2, 2], 3)
    assert found is not None
    assert found.percent() == [75, 100, 75]  # the second layer hides nothing
    assert unmasked_positions(layers[1:], [2], 3) is None


def test_a_press_that_writes_into_its_keys_is_seen_before_it_does() -> None:
    keys, values, chosen = layer()

    class Writing:
        def compress(self, module, hidden_states, keys, values, attentions, kwargs):  # type: ignore[no-untyped-def]
            kept = gather(keys, chosen), gather(values, chosen)
            keys.zero_()
            return kept

    press, found = Writing(), KeptPositions()
    watch_positions(press, found)
    press.compress(None, None, keys, values, None, {})
    expected = marks_of(chosen).sum(0) * 100 / HEADS
    assert found.percent() == expected.round().int().tolist()


@pytest.mark.parametrize("context", ["nickel 42 . maple 62 134 .", "  maple 7 .\n"])
def test_characters_of_the_context_are_counted_token_by_token(context: str) -> None:
    from kvx.data.tokenizer import load_tokenizer

    config = compose("prompt.query_aware=true")
    builder = PromptBuilder(load_tokenizer(config.model), config)
    example = Example("e", context, "maple", ("62 134",), "c", {})
    chars, parts = builder.context_chars(example), builder.parts(example)
    assert chars is not None
    assert len(chars) == len(parts.compressed_ids)
    assert sum(chars) == len(context)
    ends = np.cumsum(chars)
    at = context.index("maple")
    token = int(np.searchsorted(ends, at, side="right"))
    assert builder.tokenizer.decode(parts.compressed_ids[token]).strip() == "maple"
    assert chars[-1] == 0  # of the question


def test_only_nothing_and_all_have_the_outermost_shades() -> None:
    percent = np.arange(101)
    found = levels(percent)
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0
    assert found[100] == LEVELS
    assert set(found[1:100]) == set(range(1, LEVELS))
