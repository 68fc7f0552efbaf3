"""What a press of kvpress lacks on some families, or finds wrong there, given by hand.

SnapKV, TOVA and the presses around them score by attention weights, which kvpress recomputes as in
Llama; they take the model's own where the model hands them out, so they get those of a pass with
eager attention. ExpectedAttention gets the statistics of the model's own queries, Compactor its
queries and unrotated keys, KVzip the queries of its repetition. CriticalKV reads
the head size from the configuration, where some families have none. Presses that score gather keys
and values by `module.head_dim`, which latent attention has not, or has for another part of the key.
PyramidKV counts all layers, where only those of full attention are compressed.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol
from unittest.mock import patch

import torch
from kvpress import (
    BasePress,
    BlockPress,
    ChunkKVPress,
    ChunkPress,
    CompactorPress,
    CriticalAdaKVPress,
    CriticalKVPress,
    ExpectedAttentionPress,
    KVzipPress,
    MergingPress,
    PyramidKVPress,
    ScorerPress,
    SnapKVPress,
    ThinKPress,
    TOVAPress,
)
from kvpress.presses import leverage_press, non_causal_attention_press

from tests.family_queries import own, statistics
from tests.family_wrappers import in_blocks, in_chunks, merged

KV = tuple[torch.Tensor, torch.Tensor]


class Layers(Protocol):
    """The attention modules of a model, and which layers keep every token."""

    body: Any

    def full_layers(self) -> list[int]: ...
    def weights(self, ids: Sequence[int]) -> dict[int, torch.Tensor]: ...


def adapt(press: Any, layers: Layers, ids: Sequence[int] | None) -> None:
    """The `press` finds on a model what it needs; with the `ids` of a prompt, its own queries."""
    full = layers.full_layers()
    weights = {} if ids is None else layers.weights(ids)
    for part in _parts(press):
        if isinstance(part, SnapKVPress | TOVAPress) and ids is not None:
            part.score = partial(_seen, part.score, weights)
        if isinstance(part, ExpectedAttentionPress) and ids is not None:
            rotary = getattr(layers.body, "rotary_emb", None)
            part.score = partial(_expected, part, part.score, rotary)
        if isinstance(part, CompactorPress) and ids is not None:
            rotary = getattr(layers.body, "rotary_emb", None)
            part.score = partial(_compacted, part, part.score, rotary)
        if isinstance(part, KVzipPress) and ids is not None:
            part._compute_cross_attention = partial(_repeated, part)
        if isinstance(part, CriticalKVPress):
            part.vwl1norm = _projected_norm
        if isinstance(part, ThinKPress) and ids is not None:
            rotary = getattr(layers.body, "rotary_emb", None)
            part.compress = partial(_thinned, part, part.compress, rotary)
        if isinstance(part, ChunkKVPress):
            part.compress = partial(_chunks, part)
        if isinstance(part, CriticalAdaKVPress):
            part.compress = partial(_weighed, part.compress)
        if isinstance(part, MergingPress):
            part.compress = partial(merged, part)
        if isinstance(part, ChunkPress):
            part.compress = partial(in_chunks, part)
        if isinstance(part, BlockPress):
            part.compress = partial(in_blocks, part)
        if isinstance(part, PyramidKVPress):
            part.get_layer_budget = _counted(part.get_layer_budget, full)
            part.compress = partial(_kept, part)
        elif type(part).compress is ScorerPress.compress:
            part.compress = partial(_kept, part)


def _parts(press: Any) -> Iterator[Any]:
    yield press
    for value in vars(press).values():
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, BasePress):
                yield from _parts(inner)


def _seen(
    score: Any, weights: dict[int, torch.Tensor], module: Any, hidden: Any, keys: Any, values: Any,
    _: Any, kwargs: Any,
) -> torch.Tensor:  # fmt: skip
    """The score by the model's own attention weights."""
    own = weights[_layer_index(module, kwargs)]
    found: torch.Tensor = score(module, hidden, keys, values, own, kwargs)
    return found


def _layer_index(module: Any, kwargs: dict[str, Any]) -> int:
    found = kwargs.get("layer_idx")  # Zamba 2 calls one block at several layers
    return int(module.layer_idx if found is None else found)


def _expected(
    press: Any, score: Any, rotary: Any, module: Any, hidden: Any, keys: Any, values: Any,
    weights: Any, kwargs: Any,
) -> torch.Tensor:  # fmt: skip
    """The score by the statistics of the model's own queries."""
    n_sink, n_future = press.n_sink, press.n_future_positions
    press.get_query_statistics = lambda *_: statistics(
        rotary, module, hidden, kwargs, n_sink, n_future
    )
    found: torch.Tensor = score(module, hidden, keys, values, weights, kwargs)
    return found


def _thinned(
    press: Any, compress: Any, rotary: Any, module: Any, hidden: Any, keys: Any, values: Any,
    weights: Any, kwargs: Any,
) -> KV:  # fmt: skip
    """ThinK by the model's own queries of its window."""
    n = hidden.shape[1]
    rows = torch.arange(n - press.window_size, n)
    queries, _ = own(rotary, module, hidden, kwargs, rows, rows)
    press.compute_window_queries = lambda *_: queries
    seen = {"hidden_states": hidden, **kwargs}
    with patch.object(module, "head_dim", keys.shape[-1], create=True):
        found: KV = compress(module, hidden, keys, values, weights, seen)
    return found


def _compacted(
    press: Any, score: Any, rotary: Any, module: Any, hidden: Any, keys: Any, values: Any,
    weights: Any, kwargs: Any,
) -> torch.Tensor:  # fmt: skip
    """Compactor's score, which rotates nothing itself."""
    n = hidden.shape[1]
    rows = torch.arange(n)
    queries, _ = own(rotary, module, hidden, kwargs, rows)
    _, plain = own(rotary, module, hidden, kwargs, rows, torch.zeros_like(rows))
    left = min(press.sink_size_start, n)
    between = slice(left, n - min(press.sink_size_end, n - left))
    still = hidden.new_ones(1, n, 1), hidden.new_zeros(1, n, 1)
    with (
        patch.object(
            non_causal_attention_press, "get_prerope_query_states",
            lambda *_: queries[:, :, between],
        ),
        patch.object(leverage_press, "get_prerope_key_states", lambda *_: plain[:, :, between]),
    ):  # fmt: skip
        found: torch.Tensor = score(
            module, hidden, keys, values, weights, {**kwargs, "position_embeddings": still}
        )
    return found


def _repeated(press: Any, module: Any, hidden: Any, keys: Any, kwargs: Any) -> torch.Tensor:
    """KVzip's weights [1, KV heads, groups, n, sinks + chunk + n] of a repetition of `n` tokens."""
    n = hidden.shape[1]
    queries, _ = own(None, module, hidden, kwargs, torch.arange(n))
    grouped = queries.unflatten(1, (keys.shape[1], -1))
    sinks = keys[:, :, : min(press.n_sink, press.start_idx)]
    seen = torch.cat([sinks, keys[:, :, press.start_idx : press.end_idx], keys[:, :, -n:]], 2)
    logits = grouped @ seen[:, :, None].transpose(-2, -1) / queries.shape[-1] ** 0.5
    later = torch.ones(n, n, dtype=torch.bool).triu(1)
    logits[..., -n:].masked_fill_(later, torch.finfo(logits.dtype).min)
    return logits.softmax(-1)


def _projected_norm(values: torch.Tensor, module: Any) -> torch.Tensor:
    """CriticalKV's norms [1, KV heads, n] of values behind the output projection."""
    out = next(getattr(module, n) for n in ("o_proj", "out_proj", "dense") if hasattr(module, n))
    heads, kv_heads = module.config.num_attention_heads, values.shape[1]
    by_head = out.weight.T.unflatten(0, (heads, -1))  # [heads, size, hidden size]
    repeated = values[0].repeat_interleave(heads // kv_heads, 0)
    norms = (repeated @ by_head).abs().sum(-1)
    return norms.unflatten(0, (kv_heads, -1)).mean(1)[None]


def _weighed(compress: Any, *args: Any) -> KV:
    """CriticalAdaKV, which calls CriticalKV's function for the norms."""
    with patch.object(CriticalKVPress, "vwl1norm", staticmethod(_projected_norm)):
        found: KV = compress(*args)
    return found


def _chunks(
    press: Any, module: Any, hidden: Any, keys: Any, values: Any, weights: Any, kwargs: Any
) -> KV:
    """ChunkKV keeps the chunks of the highest mean score, the rest at the end as one of them."""
    scores = press.press.score(module, hidden, keys, values, None, kwargs)[0].sum(0)
    parts = scores.split(press.chunk_length)
    n_kept = max(1, int(len(parts) * (1 - press.compression_ratio)))
    best = torch.stack([part.mean() for part in parts]).topk(n_kept).indices
    positions = torch.arange(len(scores)).split(press.chunk_length)
    at = torch.cat([positions[i] for i in sorted(best.tolist())])
    return keys[:, :, at], values[:, :, at]


def _kept(
    press: Any, module: Any, hidden: Any, keys: Any, values: Any, weights: Any, kwargs: Any
) -> KV:
    """Scorer presses keep the entries of the highest scores, whole."""
    scores = press.score(module, hidden, keys, values, weights, kwargs)
    n = keys.shape[2]
    if isinstance(press, PyramidKVPress):
        n_kept = press.get_layer_budget(_layer_index(module, kwargs), n)
    else:
        n_kept = max(1, int(n * (1 - press.compression_ratio)))
    at = scores.topk(n_kept, dim=-1).indices[..., None]
    return keys.take_along_dim(at, 2), values.take_along_dim(at, 2)


def _counted(budget: Any, full: list[int]) -> Any:
    """PyramidKV's budget of a layer, by its place among the compressed ones.

    A layer alone has no pyramid: it keeps what the ratio asks for.
    """

    def counted(index: int, n_tokens: int) -> int:
        if len(full) == 1:
            return max(1, int(n_tokens * (1 - budget.__self__.compression_ratio)))
        among = SimpleNamespace(num_hidden_layers=len(full))
        place = SimpleNamespace(config=among, layer_idx=full.index(index))
        return int(budget(place, n_tokens))

    return counted
