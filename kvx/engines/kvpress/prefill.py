"""Prefill: the compressed prompt part through the press, then the rest on the compressed cache."""

import contextlib
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from kvx.data.prompt import PromptParts
from kvx.engines.base import KVUse
from kvx.engines.kvpress.measure import cache_bytes, cache_entries, clear_masks, masked_entries
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.rows import Prefill


@dataclass(frozen=True)
class CompressedPrompt:
    """A cache ready to decode from, its first logits, and what compression left of the prompt."""

    cache: Any
    prefill: Prefill
    kv: KVUse


def compress_prompt(
    loaded: LoadedModel, parts: PromptParts, press: Any | None, kept_tokens: int
) -> CompressedPrompt:
    """Run the prompt as kvpress's pipeline does: same forward passes, same positions.

    The press compresses each layer right after its attention; keys keep the positions at which they
    were computed, so everything that follows is given its logical position explicitly.
    """
    model, n = loaded.model, len(parts.compressed_ids)
    clear_masks(model)
    cache = DynamicCache()
    ids = torch.tensor([parts.compressed_ids], device=loaded.device)
    with press(model) if press is not None else contextlib.nullcontext():
        hidden = model.model(input_ids=ids, past_key_values=cache).last_hidden_state
    kv = _measure(model, cache, n, kept_tokens)
    if parts.rest_ids:
        rest = torch.tensor([parts.rest_ids], device=loaded.device)
        positions = torch.arange(n, n + rest.shape[1], device=loaded.device)[None]
        logits = model(
            input_ids=rest, past_key_values=cache, position_ids=positions, logits_to_keep=1
        ).logits[0, -1]
    else:
        logits = model.lm_head(hidden[0, -1])
    return CompressedPrompt(cache, Prefill(logits, parts.n_tokens, n), kv)


def _measure(model: Any, cache: Any, n_tokens: int, kept_tokens: int) -> KVUse:
    physical = cache_entries(cache)
    effective = physical - masked_entries(model, cache)
    held = cache_bytes(cache)
    per_entry = held / physical
    return KVUse(
        entries_nominal=float(kept_tokens),
        entries_effective=effective,
        entries_physical=physical,
        bytes_nominal=round(kept_tokens * per_entry),
        bytes_effective=round(effective * per_entry),
        bytes_physical=held,
        bytes_full=round(n_tokens * per_entry),
        bytes_peak=held,
    )
