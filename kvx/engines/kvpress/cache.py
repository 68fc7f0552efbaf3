"""The KV cache of many sequences at once: rows of similar length share preallocated buffers.

Nothing is concatenated or repeated per step: a bucket's buffers are allocated once, its rows are
aligned to the right, so that every step writes one column and reads a view. A layer with a window
keeps no more than it. What all rows of a bucket have alike, windows above all, is kept once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvx.engines.kvpress.grouped_attention import additive, attend, attend_common
from kvx.engines.kvpress.layers import CachedLayer
from kvx.engines.kvpress.states import KV, StateKey

SLACK = 64  # tokens that a window's buffers can take before its oldest ones are dropped


@dataclass
class _Columns:
    """Columns of keys and values up to `end`: first those `common` to all rows, then the rows' own.

    Own ones are [rows, KV heads, capacity, head size], common ones [1, KV heads, columns, head
    size]. `starts` is the first column of each row, None if it is 0 for all. A query sees at most
    `window` columns, None: all.
    """

    keys: torch.Tensor
    values: torch.Tensor
    end: int
    starts: tuple[int, ...] | None
    window: int | None
    chunked: bool
    common: KV | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return (self.keys, self.values, *(self.common or ()))

    @property
    def n_common(self) -> int:
        return 0 if self.common is None else self.common[0].shape[2]

    @property
    def needed(self) -> int:
        """How many of the latest columns the next query may see."""
        return self.end if self.window is None else min(self.end, self.window - 1)

    def columns(self, rows: slice, start: int, end: int) -> KV:
        """Keys and values of some rows in the columns from `start` to `end`."""
        common = self.n_common
        some = slice(max(start - common, 0), end - common)
        own = self.keys[rows, :, some], self.values[rows, :, some]
        if self.common is None or start >= common:
            return own
        before = [t[:, :, start:].expand(own[0].shape[0], -1, -1, -1) for t in self.common]
        keys, values = (torch.cat(parts, dim=2) for parts in zip(before, own, strict=True))
        return keys, values

    def append(self, rows: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write further columns of the first `rows` rows."""
        n = keys.shape[2]
        self._reserve(n)
        some = slice(self.end - self.n_common, self.end - self.n_common + n)
        self.keys[:rows, :, some] = keys
        self.values[:rows, :, some] = values
        self.end += n

    def _reserve(self, n: int) -> None:
        """Make room for `n` columns; a window's oldest ones are dropped for it."""
        common, capacity = self.n_common, self.keys.shape[2]
        if self.end - common + n <= capacity:
            return
        assert self.window is not None, "a row is longer than its room"
        kept = self.needed
        gone = self.end - kept
        live = [
            t[:, :, max(gone - common, 0) : self.end - common] for t in (self.keys, self.values)
        ]
        own = live[0].shape[2]
        if own + n > capacity:
            wide = own + max(n, SLACK)
            self.keys, self.values = (t.new_empty(*t.shape[:2], wide, t.shape[3]) for t in live)
        else:
            live = [t.clone() for t in live]  # both lie in the same memory
        for buffer, part in zip((self.keys, self.values), live, strict=True):
            buffer[:, :, :own] = part
        if self.common is not None:
            keys, values = (t[:, :, gone:].clone() for t in self.common)
            self.common = (keys, values) if gone < common else None
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
    model has states beside its keys and values, `state_cache` is a cache of transformers that its
    layers find them in.
    """

    def __init__(self, n_rows: int, room: int) -> None:
        self.n_rows, self.room = n_rows, room
        self.appended = 0  # entries behind every row's prompt
        self.states: dict[StateKey, torch.Tensor] = {}  # [rows, ...] each
        self.joined: Joined | None = None  # that of which `states` are parts
        self.state_cache: Any = None
        self._layers: dict[int, _Columns] = {}
        self._masks: dict[tuple[Any, ...], torch.Tensor | None] = {}

    @property
    def bytes(self) -> int:
        """Allocated for keys, values and states."""
        tensors = [t for layer in self._layers.values() for t in layer.tensors]
        tensors += self.states.values()
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def fill(self, layer: CachedLayer, rows: Sequence[KV]) -> None:
        """Store one layer: keys and values [1, KV heads, entries, head size] of every row."""
        alike = len(rows) > 1 and _all_the_same(rows) and _pays(rows[0][0])
        if layer.window is not None:
            rows = [tuple(last(t, layer.window - 1) for t in row) for row in rows]  # type: ignore[misc]
        lengths = [keys.shape[2] for keys, _ in rows]
        longest = max(lengths)
        keys, values = rows[0]
        room = self.room if layer.window is None else min(self.room, SLACK)
        if alike:
            shape = (len(rows), keys.shape[1], room)
            self._layers[layer.index] = _Columns(
                keys.new_empty(*shape, keys.shape[3]),
                values.new_empty(*shape, values.shape[3]),
                longest,
                None,
                layer.window,
                layer.chunked,
                (keys.clone(), values.clone()),  # not a view of the whole prompt
            )
            return
        shape = (len(rows), keys.shape[1], longest + room)
        stored = _Columns(
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

    def keep_states(self, states: Mapping[StateKey, torch.Tensor], state_cache: Any) -> None:
        """Every row begins with `states` [1, ...] of the prompt."""
        rows = self.n_rows
        self.states = {key: t.repeat(rows, *[1] * (t.ndim - 1)) for key, t in states.items()}
        self.state_cache = state_cache

    def append(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the new entries [rows, KV heads, n, head size] of a forward pass."""
        self._layers[layer_idx].append(self.n_rows, keys, values)

    def entries(self, layer_idx: int, n: int) -> KV:
        """A layer's entries that one of `n` new queries may see, their own included."""
        layer = self._layers[layer_idx]
        return layer.columns(slice(self.n_rows), layer.first(n), layer.end)

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
        n, layer = query.shape[2], self._layers[layer_idx]
        first = layer.first(n)
        if n == 1 and layer.common is not None and computed is None and first < layer.n_common:
            mask = self._mask(layer, n, positions, query, layer.keys.shape[1])
            keys, values = (t[:, :, first:] for t in layer.common)
            own = layer.columns(slice(self.n_rows), layer.n_common, layer.end)
            return attend_common(query, (keys, values), own, mask, **how)
        keys, values = self.entries(layer_idx, n) if computed is None else computed
        mask = self._mask(layer, n, positions, query, keys.shape[1])
        return attend(query, keys, values, mask, **how)

    def _mask(
        self, layer: _Columns, n: int, positions: torch.Tensor, query: torch.Tensor, kv_heads: int
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
            row = slice(slot, slot + 1)
            if layer.window is None:
                self.append(layer_idx, *layer.columns(row, layer.end - n, layer.end))
                continue
            start = 0 if layer.starts is None else layer.starts[slot]
            held = layer.columns(row, max(start, layer.end - layer.needed), layer.end)
            self.fill(CachedLayer(layer_idx, None, 0, layer.window, layer.chunked), [held])
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


def _all_the_same(rows: Sequence[KV]) -> bool:
    """Whether all rows hold the very tensors of the first."""
    (keys, values), *others = rows
    return all(k is keys and v is values for k, v in others)


def _pays(keys: torch.Tensor) -> bool:
    """Whether to read common entries once, with products of their own, is known to pay.

    Measured on CPU; narrow floating-point types would round the scores.
    """
    return keys.device.type == "cpu" and keys.dtype == torch.float32


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
