"""Presses that hide entries instead of dropping them: transformers' own cache, one row at a time.

kvpress replaces the hidden keys inside its patched attention functions, so these rows have to go
through them; nothing is saved by such a press, and nothing can be shared.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from kvx.config.schema import DecodingConfig
from kvx.data.prompt import PromptParts
from kvx.engines.base import KVUse
from kvx.engines.kvpress.decode import Sampler, take
from kvx.engines.kvpress.measure import cache_bytes, cache_entries, clear_masks, masked_entries
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.parts import packs
from kvx.engines.kvpress.prefill import told_head_size, watch
from kvx.engines.kvpress.probe import mean_share
from kvx.engines.kvpress.sequence import Prefill, Rebuild, Row, StepObserver


@dataclass(frozen=True)
class Masked:
    """A prompt in transformers' cache: what is left of it, and logits [tokens, vocab] of the last.

    `position` is that of the next token, `evicted` the share of its score mass that went, where
    that was looked at.
    """

    cache: Any
    logits: torch.Tensor
    kv: KVUse
    position: int
    evicted: float | None = None


def prefill_masked(
    loaded: LoadedModel,
    parts: PromptParts,
    press: Any | None,
    kept_tokens: int,
    keep: int = 1,
    watched: bool = False,
) -> Masked:
    """The prompt as kvpress's pipeline runs it, with logits of its last `keep` tokens."""
    model, n = loaded.model, len(parts.compressed_ids)
    clear_masks(model)
    cache = DynamicCache()
    ids = torch.tensor([parts.compressed_ids], device=loaded.device)
    evicted = watch(press) if watched and press is not None else None
    with told_head_size(model), press(model) if press is not None else contextlib.nullcontext():
        hidden = model.model(input_ids=ids, past_key_values=cache).last_hidden_state
    kv, share = _measure(model, cache, n, kept_tokens), mean_share(evicted)
    start = cache.get_seq_length() if press is not None and packs(press) else n
    if not parts.rest_ids:
        return Masked(cache, loaded.logits(hidden[0, -1:]), kv, start, share)
    rest = torch.tensor([parts.rest_ids], device=loaded.device)
    end = start + rest.shape[1]
    positions = torch.arange(start, end, device=loaded.device)[None]
    out = model(input_ids=rest, past_key_values=cache, position_ids=positions, logits_to_keep=keep)
    return Masked(cache, out.logits[0], kv, end, share)


def decode_masked(
    loaded: LoadedModel,
    row: Row,
    cache: Any,
    prefill: Prefill,
    config: DecodingConfig,
    observers: Sequence[StepObserver],
) -> None:
    """Generate until the row has finished; it is changed in place."""
    sampler, logits = Sampler(config), prefill.logits[None]
    for observer in observers:
        observer.on_prefill([row], [prefill])
    while True:
        tokens = sampler.choose([row], logits)
        take(loaded, [row], tokens, config)
        for observer in observers:
            for action in observer.on_step([row], logits, tokens):
                assert not isinstance(action, Rebuild)  # no row here has a guard
                row.finish_reason = row.finish_reason or action.reason
        if row.finish_reason is not None:
            return
        out = loaded.model(
            input_ids=tokens[:, None],
            past_key_values=cache,
            position_ids=torch.tensor([[row.position]], device=loaded.device),
        )
        row.position += 1
        logits = out.logits[:, -1]


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
