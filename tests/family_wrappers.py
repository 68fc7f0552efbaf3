"""Presses of kvpress that compress in a hook, or count layers, written anew for the reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hydra.utils
import torch
from kvpress import (
    BasePress,
    ComposedPress,
    KeyRerotationPress,
    PerLayerCompressionPress,
    ThinKPress,
)

KV = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Chain(BasePress):  # type: ignore[misc]
    """Presses one after the other. The only one that drops entries has the budget."""

    presses: list[Any]

    def compress(
        self, module: Any, hidden: Any, keys: Any, values: Any, weights: Any, kwargs: Any
    ) -> KV:
        for press in self.presses:
            keys, values = press.compress(module, hidden, keys, values, weights, kwargs)
        return keys, values


@dataclass
class Layered(BasePress):  # type: ignore[misc]
    """A press that keeps another share in each layer, in the order in which they come."""

    press: Any
    shares: Sequence[float]
    done: int = 0

    def compress(self, *args: Any) -> KV:
        self.press.compression_ratio = 1 - self.shares[self.done]
        self.done += 1
        found: KV = self.press.compress(*args)
        return found


def theirs(method: Mapping[str, Any], ratio: float, n_layers: int) -> Any:
    """kvpress's press at a compression ratio, on so many compressed layers."""
    press = hydra.utils.instantiate(method, _convert_="all")
    if isinstance(press, ComposedPress):
        dropping = [part for part in press.presses if not isinstance(part, ThinKPress)]
        assert len(dropping) == 1
        dropping[0].compression_ratio = ratio
        return Chain(press.presses)
    if isinstance(press, PerLayerCompressionPress):
        first, last = (1 - r for r in press.compression_ratios)
        steps = [i / (n_layers - 1) for i in range(n_layers)] if n_layers > 1 else [0.5]
        profile = [first + (last - first) * step for step in steps]
        scale = (1 - ratio) * n_layers / sum(profile)
        assert max(profile) * scale < 1
        return Layered(press.press, [share * scale for share in profile])
    press.compression_ratio = ratio
    return press


def moves_keys(press: Any) -> bool:
    """Whether the text goes on behind the entries that were kept."""
    return isinstance(press, KeyRerotationPress)


def in_chunks(
    press: Any, module: Any, hidden: Any, keys: Any, values: Any, weights: Any, kwargs: Any
) -> KV:
    """ChunkPress: of each chunk its share of the entries with the highest scores."""
    kept = []
    for at in torch.arange(keys.shape[2]).split(press.chunk_length):
        part = keys[:, :, at], values[:, :, at]
        scores = press.press.score(module, hidden[:, at], *part, weights, kwargs)
        n = max(1, int(len(at) * (1 - press.compression_ratio)))
        kept.append(at[0] + scores.topk(n, dim=-1).indices)
    chosen = torch.cat(kept, -1)[..., None]
    return keys.take_along_dim(chosen, 2), values.take_along_dim(chosen, 2)


def in_blocks(
    press: Any, module: Any, hidden: Any, keys: Any, values: Any, weights: Any, kwargs: Any
) -> KV:
    """BlockPress on scores of keys: each block competes with what was kept of those before it."""
    n, heads = keys.shape[2], keys.shape[1]
    n_kept = max(1, int(n * (1 - press.compression_ratio)))
    kept = torch.arange(n_kept).expand(1, heads, -1)
    for at in torch.arange(n_kept, n).split(min(press.block_size, n)):
        among = torch.cat([kept, at.expand(1, heads, -1)], -1)
        part = (t.take_along_dim(among[..., None], 2) for t in (keys, values))
        scores = press.press.score(module, None, *part, weights, kwargs)
        kept = among.gather(-1, scores.topk(n_kept, dim=-1).indices)
    return keys.take_along_dim(kept[..., None], 2), values.take_along_dim(kept[..., None], 2)


def merged(
    press: Any, module: Any, hidden: Any, keys: Any, values: Any, weights: Any, kwargs: Any
) -> KV:
    """MergingPress: each dropped value joins that of the kept key nearest to its own."""
    scores = press.press.score(module, hidden, keys, values, weights, kwargs)[0]
    n_kept = max(1, int(keys.shape[2] * (1 - press.compression_ratio)))
    kept_keys, kept_values = [], []
    for head, own in enumerate(scores):
        at = own.topk(n_kept).indices
        gone = torch.tensor([i for i in range(len(own)) if i not in set(at.tolist())])
        unit = torch.nn.functional.normalize(keys[0, head], dim=-1)
        near, target = (unit[gone] @ unit[at].T).max(-1)
        near = near.clamp_min(0) * (near >= press.similarity_threshold)
        size = values[0, head].norm(dim=-1)
        weight = near * size[gone] / (size[gone] + size[at][target] + 1e-6)
        total = torch.zeros(n_kept).index_add(0, target, weight)
        added = values[0, head, at].index_add(0, target, weight[:, None] * values[0, head, gone])
        kept_keys.append(keys[0, head, at])
        kept_values.append(added / (1 + total)[:, None])
    return torch.stack(kept_keys)[None], torch.stack(kept_values)[None]
