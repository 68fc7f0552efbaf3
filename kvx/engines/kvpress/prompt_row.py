"""A point's share of a prompt, and what it took."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from kvx.engines.base import KVUse
from kvx.engines.kvpress.kept import KeptPositions
from kvx.engines.kvpress.layers import CachedLayer
from kvx.engines.kvpress.probe import EvictedMass
from kvx.engines.kvpress.shadow import RowShadow
from kvx.engines.kvpress.states import KV
from kvx.engines.kvpress.streams import RandomStream


class RowPress(Protocol):
    """Makes the presses of a row."""

    def build(self) -> Any | None:
        """A new kvpress press; None where nothing is dropped."""
        ...

    def at(self, budget: float) -> "RowPress":
        """The same at another budget, a share of the prompt's entries."""
        ...

    @property
    def reads_weights(self) -> bool:
        """Whether the press reads attention weights."""
        ...

    @property
    def method_key(self) -> str | None:
        """Equal for presses with equal scores; None where no other press has them."""
        ...


@dataclass
class PromptRow:
    """One point's share of a prompt: its press, and what compression left in each layer.

    Without a press the full cache stays. A `watched` row also records the share of the score mass
    that was dropped, one with `kept` the positions that stayed. A `shadow` is filled during the
    prefill; all shadows of a prefill share one `PromptShadow`.
    """

    press: RowPress | None
    kept_tokens: int
    stream: RandomStream
    watched: bool = False
    evicted: EvictedMass | None = None
    kept: KeptPositions | None = None
    shadow: RowShadow | None = None
    room: int = 0  # how many tokens may follow the prompt
    everywhere: bool = False  # whether it compresses layers with a window too
    packs: bool = False  # whether its press moved what it kept to the first positions
    zeroes: bool = False  # whether its press sets channels of keys to zero
    entries: list[int] = field(default_factory=list)  # per layer that the press compresses
    bytes: int = 0  # of keys and values in those layers
    zero_bytes: int = 0  # of those, channels that are zero in every entry
    fixed_bytes: int = 0  # of windows and states, which no press touches
    error: Exception | None = None

    def stored(self, layer: CachedLayer, kept: KV) -> None:
        """Count what a layer holds of the prompt."""
        n = kept[0].shape[2]
        held = layer.entry_bytes * (n if layer.window is None else min(n, layer.window - 1))
        if layer.window is None or self.everywhere:
            self.entries.append(n)
            self.bytes += held
            if self.zeroes:
                self.zero_bytes += zero_bytes(kept[0])
        else:
            self.fixed_bytes += held

    def packed(self, n_tokens: int) -> int:
        """Of `n_tokens` positions before the generated text, those that the press gave up."""
        return n_tokens - self.entries[0] if self.packs else 0


def zero_bytes(keys: torch.Tensor) -> int:
    """Bytes of channels that are zero in every entry of a head, of `keys` [1, heads, n, size]."""
    return int((keys == 0).all(dim=2).sum()) * keys.shape[2] * keys.element_size()


def kv_use(row: PromptRow, n_tokens: int) -> KVUse:
    """The cache after compression of `n_tokens` prompt tokens; no entry is hidden from attention.

    Channels that a press has zeroed take memory and are not counted as effective.

    Raises `ValueError` if it is empty.
    """
    if not any(row.entries):
        raise ValueError("the press kept no entry at all")
    kept, fixed = sum(row.entries) / len(row.entries), row.fixed_bytes
    per_entry = row.bytes / kept
    full = n_tokens * per_entry
    return KVUse(
        entries_nominal=float(row.kept_tokens),
        entries_effective=kept,
        entries_physical=kept,
        bytes_nominal=round(row.kept_tokens * per_entry) + fixed,
        bytes_effective=row.bytes - row.zero_bytes + fixed,
        bytes_physical=row.bytes + fixed,
        bytes_full=round(full) + fixed,
        bytes_peak=row.bytes + fixed,
        compressed_share=full / (full + fixed),
    )
