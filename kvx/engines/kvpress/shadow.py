"""The shadow store: a prompt's full KV beside the compressed caches, from which any budget comes.

On CUDA it lies in pinned host memory and is copied during the prefill; on a CPU it is the prefill's
own cache. What a press keeps is stored as indices wherever they reproduce its entries exactly: a
further budget then costs a few bytes per entry.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from kvx.engines.kvpress.cache import Bucket, last
from kvx.engines.kvpress.layers import CachedLayer
from kvx.engines.kvpress.states import KV, StateKey

FULL = 1.0


class PromptShadow:
    """The full cache of one prompt, layer by layer; shared by all guarded rows of the prompt.

    `logits` [vocab] are the model's after its last token.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.logits: torch.Tensor | None = None
        self._layers: dict[int, KV] = {}
        self._kinds: dict[int, CachedLayer] = {}
        self._states: dict[StateKey, torch.Tensor] = {}
        self._state_cache: Any = None
        self._devices: dict[int, torch.device] = {}  # where each layer computes

    def store(self, layer: CachedLayer, full: KV) -> None:
        """Keep keys and values [1, KV heads, entries, head size]; of a window its end."""
        if layer.window is not None:
            full = last(full[0], layer.window - 1).clone(), last(full[1], layer.window - 1).clone()
        keys, values = (self._away(tensor) for tensor in full)
        self._kinds[layer.index] = layer
        self._layers[layer.index] = keys, values
        self._devices[layer.index] = full[0].device

    def finish(
        self, logits: torch.Tensor, states: Mapping[StateKey, torch.Tensor], state_cache: Any
    ) -> None:
        """The prefill is done; `states` are those after its last token, in `state_cache`."""
        self.logits, self._state_cache = logits, state_cache
        self._states = {key: state.clone() for key, state in states.items()}

    def begin(self, bucket: Bucket) -> None:
        """Give the `bucket` the states behind the prompt."""
        if self._states:
            bucket.keep_states(self._states, self._state_cache)

    def load(self, layer_idx: int) -> KV:
        """A layer's full keys and values, on its device."""
        keys, values = self._layers[layer_idx]
        device = self.device_of(layer_idx)
        return keys.to(device, non_blocking=True), values.to(device, non_blocking=True)

    def device_of(self, layer_idx: int) -> torch.device:
        return self._devices[layer_idx]

    @property
    def layers(self) -> list[CachedLayer]:
        return list(self._kinds.values())

    @property
    def bytes(self) -> int:
        """Beside the device's caches."""
        held = sum(_bytes(tensor) for layer in self._layers.values() for tensor in layer)
        return held + sum(_bytes(state) for state in self._states.values())

    def _away(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.device.type != "cuda":
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)


@dataclass
class _Kept:
    """What a budget keeps of a layer: indices [1, KV heads, kept], or the entries themselves."""

    indices: torch.Tensor | None = None
    entries: KV | None = None

    @property
    def bytes(self) -> int:
        tensors = self.entries or ((self.indices,) if self.indices is not None else ())
        return sum(_bytes(tensor) for tensor in tensors)


@dataclass
class RowShadow:
    """One row's budgets: what its press keeps of the prompt at each of them.

    `nominal` is its point's budget; `budgets` are all budgets, besides 1.0, that it can return to.
    """

    prompt: PromptShadow
    nominal: float
    budgets: tuple[float, ...]
    _kept: dict[tuple[float, int], _Kept] = field(default_factory=dict)

    def store(
        self, budget: float, layer_idx: int, full: KV, kept: KV, scores: torch.Tensor | None
    ) -> None:
        """Store what the press kept of a layer. `scores` [1, KV heads, entries] are its scores."""
        n = kept[0].shape[2]
        if scores is not None and n <= scores.shape[-1]:
            indices = scores.topk(n, dim=-1).indices
            if all(torch.equal(gather(f, indices), k) for f, k in zip(full, kept, strict=True)):
                away = indices.to(torch.int32)
                self._kept[budget, layer_idx] = _Kept(indices=self.prompt._away(away))
                return
        keys, values = (self.prompt._away(tensor.clone()) for tensor in kept)
        self._kept[budget, layer_idx] = _Kept(entries=(keys, values))

    def bucket(self, budget: float, room: int) -> Bucket:
        """A row of its own with the prompt at `budget`, and room for so many entries more.

        Raises `KeyError` for a budget that was not prepared.
        """
        bucket = Bucket(1, room)
        for layer in self.prompt.layers:
            full = layer.window is not None  # no budget changes a window
            bucket.fill(layer, [self._layer(FULL if full else budget, layer.index)])
        self.prompt.begin(bucket)
        return bucket

    @property
    def logits(self) -> torch.Tensor:
        assert self.prompt.logits is not None
        return self.prompt.logits

    @property
    def bytes(self) -> int:
        """The prompt, which other rows may share, and what is its own."""
        return self.prompt.bytes + sum(kept.bytes for kept in self._kept.values())

    def _layer(self, budget: float, layer_idx: int) -> KV:
        if budget >= FULL:
            return self.prompt.load(layer_idx)
        kept, device = self._kept[budget, layer_idx], self.prompt.device_of(layer_idx)
        if kept.entries is not None:
            return kept.entries[0].to(device), kept.entries[1].to(device)
        assert kept.indices is not None
        keys, values = self.prompt.load(layer_idx)
        indices = kept.indices.to(device).long()
        return gather(keys, indices), gather(values, indices)


class Scores:
    """Remembers the latest scores of a press."""

    def __init__(self, press: Any) -> None:
        self.latest: torch.Tensor | None = None
        if not hasattr(press, "score"):
            return
        score = press.score

        def remembered(*args: Any, **kwargs: Any) -> torch.Tensor:
            self.latest = score(*args, **kwargs)
            return self.latest

        press.score = remembered

    def take(self) -> torch.Tensor | None:
        found, self.latest = self.latest, None
        return found


def gather(tensor: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Entries [rows, KV heads, kept, head size] at `indices` [rows, KV heads, kept]."""
    return tensor.gather(2, indices[..., None].expand(*indices.shape, tensor.shape[-1]))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def row_shadow(prompt: PromptShadow, nominal: float, levels: Sequence[float]) -> RowShadow:
    """A new shadow, to be filled by a prefill."""
    budgets = tuple(sorted({b for b in (*levels, nominal) if b < FULL}))
    return RowShadow(prompt, nominal, budgets)
