"""Attention in which the query heads of one KV head are queries of their own."""

import torch


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
    scores = torch.matmul(query, keys.transpose(2, 3)) * (
        size**-0.5 if scaling is None else scaling
    )
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        own = sinks.to(scores.dtype).view(1, kv_heads, groups, 1, 1)
        own = own.expand(rows, kv_heads, groups, n, 1).reshape(rows, kv_heads, groups * n, 1)
        scores = torch.cat([scores, own], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if sinks is not None:
        weights = weights[..., :-1]
    return torch.matmul(weights, values).reshape(rows, heads, n, -1)
