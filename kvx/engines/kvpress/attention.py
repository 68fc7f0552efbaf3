"""Attention over rows of different length, as an attention implementation of transformers.

It is registered without a mask function, so transformers builds no mask; the cache masks each row.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import kvpress  # noqa: F401  its import patches every registered function; ours must be registered later
import torch
from transformers import AttentionInterface

from kvx.engines.kvpress.cache import RaggedCache

RAGGED = "kvx_ragged"


def ragged_attention(
    module: Any,
    query: torch.Tensor,
    key: RaggedCache,
    value: int,
    attention_mask: None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Output [rows, n, heads, head size] for query [rows, heads, n, head size].

    `key` and `value` are what `RaggedCache.update` returned: the cache and the layer's index.
    """
    return key.attend(value, query, scaling).transpose(1, 2), None


AttentionInterface.register(RAGGED, ragged_attention)


@contextlib.contextmanager
def ragged(model: Any) -> Iterator[None]:
    """The model attends through a `RaggedCache` inside this context."""
    before = model.config._attn_implementation
    model.config._attn_implementation = RAGGED
    try:
        yield
    finally:
        model.config._attn_implementation = before


def ragged_obstacle(model: Any) -> str | None:
    """What this model's attention does that rows of different length cannot, if anything."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"}:
        return f"layers of {', '.join(sorted(kinds - {'full_attention'}))}"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        return "sliding-window attention"
    if getattr(config, "attn_logit_softcapping", None):
        return "capped attention logits"
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if (kind := rope.get("rope_type", rope.get("type"))) in ("dynamic", "longrope"):
        return f"{kind} rotary embeddings, which depend on the longest row"
    if not getattr(model, "_supports_attention_backend", False):
        return "attention that cannot be replaced"
    return None
