"""Attention in which the query heads of one KV head are queries of their own."""

import torch

from kvx.engines.kvpress.states import KV


def additive(hidden: torch.Tensor, groups: int, dtype: torch.dtype) -> torch.Tensor:
    """Mask [rows or 1, 1, groups * n, entries] to add to scores, from [rows or 1, n, entries]."""
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    mask = mask.masked_fill_(hidden, torch.finfo(dtype).min)
    return mask.repeat(1, groups, 1)[:, None]


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Output [rows, heads, n, values' head size] for query [rows, heads, n, head size].

    Keys and values [rows, KV heads, entries, head size] are read once, not repeated; `mask`
    is `additive`. Scores are capped at `softcap`, with a hyperbolic tangent; `sinks` [heads] are
    scores of an entry without a value.
    """
    rows, heads, n, size = query.shape
    kv_heads = keys.shape[1]
    groups = heads // kv_heads
    query = query.reshape(rows, kv_heads, groups * n, size)
    if softcap is None and sinks is None:
        out = torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scaling
        )
        return out.reshape(rows, heads, n, -1)
    scores = torch.matmul(query, keys.transpose(2, 3))
    weights = _weights(scores, size, mask, scaling, softcap, sinks)
    return torch.matmul(weights, values).reshape(rows, heads, n, -1)


def attend_common(
    query: torch.Tensor,
    common: KV,
    own: KV,
    mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """As `attend`, for query [rows, heads, 1, head size] and entries that all rows begin with.

    Keys and values are [1, KV heads, entries, head size] of the `common` ones, which are read once
    for all rows, and [rows, KV heads, entries, head size] of the rows' `own`.
    """
    rows, heads, _, size = query.shape
    kv_heads, n = common[0].shape[1:3]
    groups = heads // kv_heads
    query = query.reshape(rows, kv_heads, groups, size)
    together = query.transpose(0, 1).reshape(kv_heads, -1, size)
    seen = torch.matmul(together, common[0][0].transpose(1, 2))  # [KV heads, rows * groups, n]
    seen = seen.view(kv_heads, rows, groups, n).transpose(0, 1)
    scores = torch.cat([seen, torch.matmul(query, own[0].transpose(2, 3))], dim=-1)
    weights = _weights(scores, size, mask, scaling, softcap, sinks)
    seen = weights[..., :n].transpose(0, 1).reshape(kv_heads, -1, n)
    out = torch.matmul(seen, common[1][0]).view(kv_heads, rows, groups, -1)
    out = out.transpose(0, 1) + torch.matmul(weights[..., n:], own[1])
    return out.reshape(rows, heads, 1, -1)


def _weights(
    scores: torch.Tensor,
    size: int,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Weights [rows, KV heads, groups * n, entries] of products of queries and keys."""
    rows, kv_heads, queries, _ = scores.shape
    dtype = scores.dtype
    scores = scores * (size**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        groups = sinks.numel() // kv_heads
        own = sinks.to(dtype).view(1, kv_heads, groups, 1, 1)
        own = own.expand(rows, kv_heads, groups, queries // groups, 1)
        scores = torch.cat([scores, own.reshape(rows, kv_heads, queries, 1)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
    return weights if sinks is None else weights[..., :-1]
