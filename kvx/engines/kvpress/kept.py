"""Which positions of a prompt a press kept, told from the entries that it returned.

A press returns keys and values, not indices. Entries that it kept are found among the layer's full
ones by fingerprints of their bits, so no press has to say what it did.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from kvx.engines.kvpress.layers import CachedLayer
from kvx.engines.kvpress.states import KV

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_ONCE = 4096  # entries whose bits are held as 64-bit integers


class LayerEntries:
    """The `full` keys and values [1, KV heads, entries, head size] of a layer, to find parts in."""

    def __init__(self, full: KV) -> None:
        self._full = full

    def read(self) -> "LayerEntries":
        """Take the fingerprints now, not when they are first needed."""
        _ = self._keys, self._values
        return self

    def positions(self, kept: KV) -> torch.Tensor | None:
        """Which entries `kept` are, as marks [KV heads, entries]; None if that cannot be told.

        They are found by keys and values. A press that changed one of both is told by the other,
        where no two entries of a head are alike in it.
        """
        if any(
            new.shape[:2] + new.shape[3:] != old.shape[:2] + old.shape[3:] or new.dtype != old.dtype
            for new, old in zip(kept, self._full, strict=True)
        ):
            return None
        keys, values = (_fingerprints(tensor) for tensor in kept)
        for full, own in (
            (self._keys + self._values, keys + values),
            (self._keys, keys),
            (self._values, values),
        ):
            if (found := _marks(full, own)) is not None:
                return found
        return None

    @cached_property
    def _keys(self) -> torch.Tensor:
        return _fingerprints(self._full[0])

    @cached_property
    def _values(self) -> torch.Tensor:
        return _fingerprints(self._full[1])


class KeptPositions:
    """In which share of layers and KV heads a press kept each position of one prompt."""

    def __init__(self) -> None:
        self._kept: torch.Tensor | None = None  # [entries], in so many heads of all layers
        self._heads = 0

    def add(self, marks: torch.Tensor | None) -> None:
        """Count a layer's `marks` [KV heads, entries]; one that could not be told is left out."""
        if marks is None:
            return
        kept = marks.sum(0).cpu()
        if self._kept is None:
            self._kept = torch.zeros_like(kept)
        if len(kept) == len(self._kept):
            self._kept += kept
            self._heads += len(marks)

    def percent(self) -> list[int] | None:
        """Whole percents [entries]; None if no layer could be told."""
        if self._kept is None:
            return None
        found: list[int] = (self._kept * 100 / self._heads).round().int().tolist()
        return found


def watch_positions(press: Any, found: KeptPositions) -> None:
    """Count in `found` what `press` keeps inside its own context."""
    compress = press.compress

    def watched(
        module: Any,
        hidden_states: Any,
        keys: torch.Tensor,
        values: torch.Tensor,
        *rest: Any,
        **named: Any,
    ) -> KV:
        entries = LayerEntries((keys, values)).read()  # the press may write into them
        kept: KV = compress(module, hidden_states, keys, values, *rest, **named)
        found.add(entries.positions(kept))
        return kept

    press.compress = watched


def unmasked_positions(
    layers: Sequence[CachedLayer], heads: Sequence[int], n: int
) -> KeptPositions | None:
    """Of `n` positions those that a press did not hide in `layers`; None if it hides nothing.

    `heads` are the layers' numbers of KV heads.
    """
    hidden = [getattr(layer.attention, "masked_key_indices", None) for layer in layers]
    if all(masked is None for masked in hidden):
        return None
    found = KeptPositions()
    for masked, n_heads in zip(hidden, heads, strict=True):
        marks = torch.ones(n_heads, n, dtype=torch.bool)
        if masked is not None:
            marks[masked[1].cpu(), masked[2].cpu()] = False
        found.add(marks)
    return found


def _fingerprints(entries: torch.Tensor) -> torch.Tensor:
    """64 bits [KV heads, entries] of each of `entries` [1, KV heads, entries, size]."""
    size = entries.shape[-1]
    generator = torch.Generator().manual_seed(size)
    factors = torch.randint(-(2**63), 2**63 - 1, (size,), generator=generator) | 1
    factors = factors.to(entries.device)
    bits = entries[0].contiguous().view(_BITS[entries.element_size()])
    parts = [(part.long() * factors).sum(-1) for part in torch.split(bits, _AT_ONCE, dim=1)]
    return torch.cat(parts, dim=1)  # sums of integers: the same in any order


def _marks(full: torch.Tensor, own: torch.Tensor) -> torch.Tensor | None:
    """Where in `full` [heads, n] the `own` [heads, kept] are; None unless all are, and once."""
    if own.shape[1] > full.shape[1]:
        return None
    ordered, order = full.sort(dim=1)
    if (ordered[:, 1:] == ordered[:, :-1]).any():
        return None
    place = torch.searchsorted(ordered, own.contiguous()).clamp(max=full.shape[1] - 1)
    if not torch.equal(ordered.gather(1, place), own):
        return None
    marks = torch.zeros_like(full, dtype=torch.bool).scatter_(1, order.gather(1, place), True)
    return marks if bool((marks.sum(1) == own.shape[1]).all()) else None
