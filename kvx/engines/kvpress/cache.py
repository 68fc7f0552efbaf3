"""The KV cache of many sequences at once: rows of similar length share preallocated buffers.

Nothing is concatenated or repeated per step: a bucket's buffers are allocated once, its rows are
aligned to the right, so that every step writes one column and reads a view. A layer with a window
keeps no more than it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvx.engines.kvpress.grouped_attention import additive, attend
from kvx.engines.kvpress.layers import CachedLayer
from kvx.engines.kvpress.states import KV, StateKey

SLACK = 64  # tokens that a window's buffers can take before its oldest ones are dropped


@dataclass
class _Layer:
    """Keys and values [rows, KV heads, capacity, head size], filled up to column `end`.

    `starts` is the first column of each row, None if it is 0 for all. A query sees at most `window`
    columns, None: all.
    """

    keys: torch.Tensor
    values: torch.Tensor
    end: int
    starts: tuple[int, ...] | None
    window: int | None
    chunked: bool

    @property
    def needed(self) -> int:
        """How many of the latest columns the next query may see."""
        return self.end if self.window is None else min(self.end, self.window - 1)

    def reserve(self, n: int) -> None:
        """Make room for `n` columns; a window's oldest ones are dropped for it."""
        capacity, kept = self.keys.shape[2], self.needed
        if self.end + n <= capacity:
            return
        assert self.window is not None, "a row is longer than its room"
        gone = self.end - kept
        live = [t[:, :, gone : self.end] for t in (self.keys, self.values)]
        if kept + n > capacity:
            wide = self.window - 1 + max(n, SLACK)
            self.keys, self.values = (t.new_empty(*t.shape[:2], wide, t.shape[3]) for t in live)
        else:
            live = [t.clone() for t in live]  # both lie in the same memory
        for buffer, part in zip((self.keys, self.values), live, strict=True):
            buffer[:, :, :kept] = part
        self.end = kept
        if self.starts is not None:
            starts = tuple(max(start - gone, 0) for start in self.starts)
            self.starts = starts if any(starts) else None

    def first(self, n: int) -> int:
        """The first column that one of the last `n` queries may see."""
        return 0 if self.window is None else max(0, self.end - n - (self.window - 1))

    def mask(self, n: int, positions: torch.Tensor | None) -> torch.Tensor | None:
        """What is hidden from the last `n` queries, from the `first` column on.

        [rows or 1, n, columns], True where hidden; None if they see everything. `positions`
        [rows, n] are the queries', for windows that begin at multiples of their size.
        """
        end, window, first = self.end, self.window, self.first(n)
        late = self.starts is not None and max(self.starts) > first
        if n == 1 and not late and not self.chunked:
            return None
        device = self.keys.device
        columns = torch.arange(first, end, device=device)
        age = torch.arange(end - n, end, device=device)[:, None] - columns  # [n, columns]
        hidden = (age < 0)[None]
        if self.chunked and window is not None:
            assert positions is not None
            hidden = hidden | (age > (positions % window)[..., None])
        elif window is not None and n > 1:
            hidden = hidden | (age >= window)
        if late:
            starts = torch.tensor(self.starts, device=device)
            hidden = hidden | (columns < starts[:, None])[:, None]
        return hidden


@dataclass(frozen=True, eq=False)
class Joined:
    """States of the rows of several buckets in one tensor each: a step copies none of them."""

    states: Mapping[StateKey, torch.Tensor]
    buckets: tuple[int, ...]  # ids, in the order of the rows


class Bucket:
    """Running rows of similar length, filled layer by layer during the prefill.

    `room` is how many entries each row may append: the question and what is generated. Where a
    model has states beside its keys and values, `vessel` is a cache of transformers that its
    layers find them in.
    """

    def __init__(self, n_rows: int, room: int) -> None:
        self.n_rows, self.room = n_rows, room
        self.appended = 0  # entries behind every row's prompt
        self.states: dict[StateKey, torch.Tensor] = {}  # [rows, ...] each
        self.joined: Joined | None = None  # that of which `states` are parts
        self.vessel: Any = None
        self._layers: dict[int, _Layer] = {}
        self._masks: dict[tuple[Any, ...], torch.Tensor | None] = {}

    @property
    def bytes(self) -> int:
        """Allocated for keys, values and states."""
        tensors = [t for layer in self._layers.values() for t in (layer.keys, layer.values)]
        tensors += self.states.values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def fill(self, layer: CachedLayer, rows: Sequence[KV]) -> None:
        """Store one layer: keys and values [1, KV heads, entries, head size] of every row."""
        if layer.window is not None:
            rows = [tuple(last(t, layer.window - 1) for t in row) for row in rows]  # type: ignore[misc]
        lengths = [keys.shape[2] for keys, _ in rows]
        longest = max(lengths)
        keys, values = rows[0]
        room = self.room if layer.window is None else min(self.room, SLACK)
        shape = (len(rows), keys.shape[1], longest + room)
        stored = _Layer(
            keys.new_empty(*shape, keys.shape[3]),
            values.new_empty(*shape, values.shape[3]),
            longest,
            None,
            layer.window,
            layer.chunked,
        )
        for slot, (keys, values) in enumerate(rows):
            start = longest - lengths[slot]
            for buffer, source in ((stored.keys, keys), (stored.values, values)):
                buffer[slot, :, :start] = 0  # hidden, but garbage may hold NaN
                buffer[slot, :, start:longest] = source[0]
        if min(lengths) < longest:
            stored.starts = tuple(longest - n for n in lengths)
        self._layers[layer.index] = stored

    def keep_states(self, states: Mapping[StateKey, torch.Tensor], vessel: Any) -> None:
        """Every row begins with `states` [1, ...] of the prompt."""
        rows = self.n_rows
        self.states = {key: t.repeat(rows, *[1] * (t.ndim - 1)) for key, t in states.items()}
        self.vessel = vessel

    def append(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the new entries [rows, KV heads, n, head size] of a forward pass."""
        layer, n = self._layers[layer_idx], keys.shape[2]
        layer.reserve(n)
        layer.keys[: self.n_rows, :, layer.end : layer.end + n] = keys
        layer.values[: self.n_rows, :, layer.end : layer.end + n] = values
        layer.end += n

    def entries(self, layer_idx: int, n: int) -> KV:
        """A layer's entries that one of `n` new queries may see, their own included."""
        layer = self._layers[layer_idx]
        some = slice(layer.first(n), layer.end)
        return layer.keys[: self.n_rows, :, some], layer.values[: self.n_rows, :, some]

    def attend(
        self,
        layer_idx: int,
        query: torch.Tensor,
        positions: torch.Tensor,
        computed: KV | None = None,
        **how: Any,
    ) -> torch.Tensor:
        """Attention of query [rows, heads, n, head size] to its rows' entries; values' head size.

        The entries of the queries' own tokens have been appended. `positions` [rows, n] are the
        queries'; `how` as in `grouped_attention.attend`. Keys and values that were `computed` from
        the entries take their place.
        """
        n = query.shape[2]
        keys, values = self.entries(layer_idx, n) if computed is None else computed
        mask = self._mask(self._layers[layer_idx], n, positions, query, keys.shape[1])
        return attend(query, keys, values, mask, **how)

    def _mask(
        self, layer: _Layer, n: int, positions: torch.Tensor, query: torch.Tensor, kv_heads: int
    ) -> torch.Tensor | None:
        """Layers on a device that keep the same entries share one mask per forward pass."""
        groups, device = query.shape[1] // kv_heads, layer.keys.device
        key = (layer.end, n, layer.starts, layer.window, layer.chunked, groups, device)
        if key not in self._masks:
            hidden = layer.mask(n, positions.to(device) if layer.chunked else None)
            mask = None if hidden is None else additive(hidden, groups, query.dtype)
            self._masks[key] = mask
        return self._masks[key]

    def advance(self, n: int) -> None:
        """`n` entries were appended to every layer."""
        self.appended += n
        self._masks.clear()

    def continue_from(self, other: "Bucket", slot: int) -> None:
        """Append to this bucket's row what the row in `slot` of `other` has appended."""
        n = other.appended
        for layer_idx, layer in other._layers.items():
            if layer.window is None:
                some = slice(layer.end - n, layer.end)
                keys, values = (t[slot : slot + 1, :, some] for t in (layer.keys, layer.values))
                self.append(layer_idx, keys, values)
                continue
            start = 0 if layer.starts is None else layer.starts[slot]
            some = slice(max(start, layer.end - layer.needed), layer.end)
            keys, values = (t[slot : slot + 1, :, some] for t in (layer.keys, layer.values))
            self.fill(
                CachedLayer(layer_idx, None, 0, layer.window, layer.chunked), [(keys, values)]
            )
        self.states = {key: t[slot : slot + 1].clone() for key, t in other.states.items()}
        self.joined = None
        self.advance(n)

    def drop(self, slot: int) -> None:
        """Take a row out; the last row moves into its slot."""
        last = self.n_rows - 1
        for layer in self._layers.values():
            if slot != last:
                layer.keys[slot] = layer.keys[last]
                layer.values[slot] = layer.values[last]
            if layer.starts is not None:
                starts = list(layer.starts)
                starts[slot] = starts[last]
                layer.starts = tuple(starts[:last])
            if 2 * last <= layer.keys.shape[0]:  # free unused memory, a layer at a time
                layer.keys, layer.values = layer.keys[:last].clone(), layer.values[:last].clone()
        self.joined = None
        for key, state in self.states.items():
            rows = [*range(slot), last, *range(slot + 1, last)] if slot != last else range(last)
            self.states[key] = state[list(rows)]
        self.n_rows = last
        self._masks.clear()


def last(tensor: torch.Tensor, n: int) -> torch.Tensor:
    """Its last `n` entries [.., .., entries, ..], or all of them."""
    return tensor[:, :, max(0, tensor.shape[2] - n) :]


def joined_states(buckets: Sequence[Bucket]) -> Mapping[StateKey, torch.Tensor]:
    """States [rows, ...] of the rows of all `buckets`, whose own become parts of them."""
    first, order = buckets[0].joined, tuple(map(id, buckets))
    if len(buckets) == 1:
        return buckets[0].states
    alike = first is not None and first.buckets == order
    if first is not None and alike and all(bucket.joined is first for bucket in buckets):
        return first.states
    states: dict[StateKey, torch.Tensor] = {}
    for key in list(buckets[0].states):  # one at a time: the parts are freed as the whole is made
        states[key] = torch.cat([bucket.states[key] for bucket in buckets])
        share_states(buckets, {key: states[key]})
    return states


def share_states(buckets: Sequence[Bucket], states: Mapping[StateKey, torch.Tensor]) -> None:
    """Every bucket gets its rows' part of `states` [rows, ...]."""
    sizes, joined = [bucket.n_rows for bucket in buckets], None
    if len(buckets) > 1 and states.keys() == buckets[0].states.keys():
        joined = Joined(dict(states), tuple(map(id, buckets)))
    for key, state in states.items():
        for bucket, part in zip(buckets, torch.split(state, sizes), strict=True):
            bucket.states[key] = part
    for bucket in buckets:
        bucket.joined = joined
