"""The KV cache of many sequences at once: rows of similar length share preallocated buffers.

Nothing is concatenated or repeated per step: a bucket's buffers are allocated once, its rows are
aligned to the right, so that every step writes one column and reads a view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache

KV = tuple[torch.Tensor, torch.Tensor]


@dataclass
class _Layer:
    """Keys and values [rows, KV heads, capacity, head size] and the padding of shorter rows."""

    keys: torch.Tensor
    values: torch.Tensor
    entries: int  # of the longest row, before anything was appended
    padding: tuple[int, ...] | None  # per row, None if all rows are equally long

    def mask(self, end: int, n: int, groups: int) -> torch.Tensor | None:
        """Additive mask: which of the first `end` columns `n` new queries per head may not see.

        [rows or 1, 1, groups * n, end]; None if they see everything.
        """
        if self.padding is None and n == 1:
            return None
        device, dtype = self.keys.device, self.keys.dtype
        columns = torch.arange(end, device=device)
        hidden = columns[None] > torch.arange(end - n, end, device=device)[:, None]  # [n, end]
        hidden = hidden[None].repeat(1, groups, 1)
        if self.padding is not None:
            padding = torch.tensor(self.padding, device=device)
            hidden = hidden | (columns[None] < padding[:, None])[:, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None]


class Bucket:
    """Running rows of similar length, filled layer by layer during the prefill.

    `room` is how many entries each row may append: the question and what is generated.
    """

    def __init__(self, n_rows: int, room: int) -> None:
        self.n_rows, self.room = n_rows, room
        self.appended = 0  # entries behind every row's prompt
        self._layers: dict[int, _Layer] = {}
        self._masks: dict[tuple[Any, ...], torch.Tensor | None] = {}

    @property
    def bytes(self) -> int:
        """Allocated for keys and values."""
        return sum(
            tensor.numel() * tensor.element_size()
            for layer in self._layers.values()
            for tensor in (layer.keys, layer.values)
        )

    def fill(self, layer_idx: int, rows: Sequence[KV]) -> None:
        """Store one layer: keys and values [1, KV heads, entries, head size] of every row."""
        lengths = [keys.shape[2] for keys, _ in rows]
        longest = max(lengths)
        keys, values = rows[0]
        shape = (len(rows), keys.shape[1], longest + self.room)
        layer = _Layer(
            keys.new_empty(*shape, keys.shape[3]),
            values.new_empty(*shape, values.shape[3]),
            longest,
            None,
        )
        for slot, (keys, values) in enumerate(rows):
            start = longest - lengths[slot]
            for buffer, source in ((layer.keys, keys), (layer.values, values)):
                buffer[slot, :, :start] = 0  # hidden, but garbage may hold NaN
                buffer[slot, :, start:longest] = source[0]
        if min(lengths) < longest:
            layer.padding = tuple(longest - n for n in lengths)
        self._layers[layer_idx] = layer

    def append(self, layer_idx: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Write the new entries [rows, KV heads, n, head size] of a forward pass."""
        layer = self._layers[layer_idx]
        start = layer.entries + self.appended
        assert start + keys.shape[2] <= layer.keys.shape[2], "a row is longer than its room"
        layer.keys[: self.n_rows, :, start : start + keys.shape[2]] = keys
        layer.values[: self.n_rows, :, start : start + keys.shape[2]] = values

    def attend(self, layer_idx: int, query: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """Attention of query [rows, heads, n, head size] to all its rows' entries, same shape.

        The query heads of one KV head are its queries: keys and values are read once, not repeated.
        """
        layer = self._layers[layer_idx]
        rows, heads, n, size = query.shape
        kv_heads = layer.keys.shape[1]
        end = layer.entries + self.appended + n
        groups = heads // kv_heads
        out = torch.nn.functional.scaled_dot_product_attention(
            query.reshape(rows, kv_heads, groups * n, size),
            layer.keys[:rows, :, :end],
            layer.values[:rows, :, :end],
            attn_mask=self._mask(layer, end, n, groups),
            scale=scaling,
        )
        return out.reshape(rows, heads, n, -1)

    def _mask(self, layer: _Layer, end: int, n: int, groups: int) -> torch.Tensor | None:
        """Layers on a device that keep the same entries share one mask per forward pass."""
        key = (end, n, layer.padding, layer.keys.device)
        if key not in self._masks:
            self._masks[key] = layer.mask(end, n, groups)
        return self._masks[key]

    def advance(self, n: int) -> None:
        """`n` entries were appended to every layer."""
        self.appended += n
        self._masks.clear()

    def continue_from(self, other: "Bucket", slot: int) -> None:
        """Append to this bucket's row what the row in `slot` of `other` has appended."""
        n = other.appended
        for layer_idx, layer in other._layers.items():
            some = slice(layer.entries, layer.entries + n)
            keys, values = (t[slot : slot + 1, :, some] for t in (layer.keys, layer.values))
            self.append(layer_idx, keys, values)
        self.advance(n)

    def drop(self, slot: int) -> None:
        """Take a row out; the last row moves into its slot."""
        last = self.n_rows - 1
        for layer in self._layers.values():
            if slot != last:
                layer.keys[slot] = layer.keys[last]
                layer.values[slot] = layer.values[last]
            if layer.padding is not None:
                padding = list(layer.padding)
                padding[slot] = padding[last]
                layer.padding = tuple(padding[:last])
            if 2 * last <= layer.keys.shape[0]:  # free unused memory, a layer at a time
                layer.keys, layer.values = layer.keys[:last].clone(), layer.values[:last].clone()
        self.n_rows = last
        self._masks.clear()


class RaggedCache(Cache):  # type: ignore[misc]
    """What transformers sees of several buckets in one forward pass.

    The batch holds the buckets' rows one after another. `update` hands the attention function the
    cache itself in place of the keys.
    """

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        super().__init__(layers=[])
        self.buckets = buckets

    def update(self, key_states: Any, value_states: Any, layer_idx: int, *_: Any, **__: Any) -> Any:
        start = 0
        for bucket in self.buckets:
            end = start + bucket.n_rows
            bucket.append(layer_idx, key_states[start:end], value_states[start:end])
            start = end
        return self, layer_idx

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Not used: rows differ, and every forward pass gets its positions."""
        return 0

    def attend(self, layer_idx: int, query: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """Attention of query [rows, heads, n, head size]."""
        sizes = [bucket.n_rows for bucket in self.buckets]
        parts = [
            bucket.attend(layer_idx, part, scaling)
            for bucket, part in zip(self.buckets, torch.split(query, sizes), strict=True)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def advance(self, n: int) -> None:
        for bucket in self.buckets:
            bucket.advance(n)
