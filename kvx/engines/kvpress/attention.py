"""Attention over rows of different length, as an attention implementation of transformers.

It is registered without a mask function, so transformers builds no mask; the cache masks each row.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import kvpress  # noqa: F401  its import patches every registered function; ours must be registered later
import torch
from transformers import AttentionInterface, Cache

from kvx.engines.kvpress.cache import Bucket, joined_states, share_states
from kvx.engines.kvpress.layers import attending_through
from kvx.engines.kvpress.positions import own_scale
from kvx.engines.kvpress.states import KV, forget_states, set_states, states_of

RAGGED = "kvx_ragged"


@dataclass(frozen=True)
class Ragged:
    """What a forward pass over the rows of several buckets attends to, one bucket after another.

    `positions` [rows, n] are those of the tokens that pass. `latent`, `scaled`: as in
    `Layers`.
    """

    buckets: Sequence[Bucket]
    positions: torch.Tensor
    latent: bool = False
    scaled: bool = False
    latest: list[int] = field(default_factory=list)  # layers whose entries are computed with

    @cached_property
    def _each(self) -> list[tuple[Bucket, torch.Tensor]]:
        """The buckets with their rows' positions."""
        sizes = [bucket.n_rows for bucket in self.buckets]
        return list(zip(self.buckets, torch.split(self.positions, sizes), strict=True))

    def append(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the new entries [rows, KV heads, n, head size] of a layer."""
        start = 0
        for bucket in self.buckets:
            end = start + bucket.n_rows
            bucket.append(layer_idx, keys[start:end], values[start:end])
            start = end

    def padded(self, layer_idx: int) -> KV:
        """All rows' entries of a layer, of equal length: zeros stand before shorter ones.

        For models that compute keys and values from what is cached, `attend` takes the rest.
        """
        parts = [bucket.entries(layer_idx, self.positions.shape[1]) for bucket in self.buckets]
        longest = max(keys.shape[2] for keys, _ in parts)
        both = [
            [torch.nn.functional.pad(t, (0, 0, longest - t.shape[2], 0)) for t in part]
            for part in zip(*parts, strict=True)
        ]
        self.latest.append(layer_idx)
        return torch.cat(both[0]), torch.cat(both[1])

    def attend_computed(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **how: Any
    ) -> torch.Tensor:
        """As `attend`, with keys and values [rows, KV heads, entries, ...] of the latest layer."""
        parts, start, layer_idx = [], 0, self.latest.pop()
        for bucket, at in self._each:
            some, start = slice(start, start + bucket.n_rows), start + bucket.n_rows
            n = bucket.entries(layer_idx, query.shape[2])[0].shape[2]
            own = keys[some, :, keys.shape[2] - n :], values[some, :, values.shape[2] - n :]
            parts.append(bucket.attend(layer_idx, query[some], at, own, **how))
        return torch.cat(parts)

    def attend(self, layer_idx: int, query: torch.Tensor, **how: Any) -> torch.Tensor:
        """Attention of query [rows, heads, n, head size]; `how` as in `Bucket.attend`."""
        if len(self.buckets) == 1:
            return self.buckets[0].attend(layer_idx, query, self.positions, **how)
        queries = torch.split(query, [bucket.n_rows for bucket in self.buckets])
        parts = [
            bucket.attend(layer_idx, some, at, **how)
            for (bucket, at), some in zip(self._each, queries, strict=True)
        ]
        return torch.cat(parts)

    def advance(self) -> None:
        """The tokens have passed through every layer."""
        for bucket in self.buckets:
            bucket.advance(self.positions.shape[1])


@dataclass(frozen=True)
class RaggedLayer:
    """What attention gets in place of a layer's keys and values."""

    layer_idx: int

    def to(self, *_: Any, **__: Any) -> "RaggedLayer":
        """Models that share a layer's keys and values move them to where they need them."""
        return self


class RaggedCache(Cache):  # type: ignore[misc]
    """What a model of attention layers only takes for its cache in one forward pass."""

    def __init__(self, rows: Ragged, length: int) -> None:
        super().__init__(layers=[])
        self.rows, self.length = rows, length

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Nothing is returned that is a tensor, unless the model is latent."""
        self.rows.append(layer_idx, key_states, value_states)
        if self.rows.latent:
            return self.rows.padded(layer_idx)
        layer = RaggedLayer(layer_idx)
        return layer, layer

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The first row's; every forward pass gets its positions."""
        return self.length


@contextmanager
def cache_of(rows: Ragged, length: int) -> Iterator[Any]:
    """A cache for one forward pass; `length` is the position of the first row's first token.

    Rows with states get the cache that layers find them in. It holds those of all rows meanwhile.
    """
    own = RaggedCache(rows, length)
    state_cache = rows.buckets[0].state_cache
    if state_cache is None:
        yield own
        return
    state_cache.update, state_cache.get_seq_length = own.update, own.get_seq_length
    set_states(state_cache, joined_states(rows.buckets))
    try:
        yield state_cache
        share_states(rows.buckets, states_of(state_cache))
    finally:  # it outlives the rows: nothing of them stays
        del state_cache.update, state_cache.get_seq_length
        forget_states(state_cache)


_passing: ContextVar[Ragged] = ContextVar("rows of the forward pass")


@contextmanager
def ragged(model: Any, rows: Ragged) -> Iterator[None]:
    """The model attends to `rows` inside this context."""
    token = _passing.set(rows)
    try:
        with attending_through(model, RAGGED):
            yield
    finally:
        _passing.reset(token)


def ragged_attention(
    module: Any,
    query: torch.Tensor,
    key: RaggedLayer | torch.Tensor,
    value: RaggedLayer | torch.Tensor,
    attention_mask: None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Output [rows, n, heads, head size] for query [rows, heads, n, head size]."""
    rows = _passing.get()
    if rows.scaled and (scale := own_scale(module, rows.positions)) is not None:
        query = query * scale.to(query)
    how: dict[str, Any] = {"scaling": scaling, "softcap": softcap, "sinks": s_aux}
    if isinstance(key, torch.Tensor):
        assert isinstance(value, torch.Tensor)
        out = rows.attend_computed(query, key, value, **how)
    else:
        out = rows.attend(key.layer_idx, query, **how)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(RAGGED, ragged_attention)
