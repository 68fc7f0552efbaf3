"""Presses that hide entries instead of dropping them: transformers' own cache, one row at a time.

kvpress replaces the hidden keys inside its patched attention functions, so these rows must go
through them; such a press saves no memory, and its rows share no prefill.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvx.config.schema import DecodingConfig
from kvx.data.prompt import PromptParts
from kvx.engines.base import KVUse
from kvx.engines.kvpress.admission import Submission
from kvx.engines.kvpress.compress import hooked, watch
from kvx.engines.kvpress.decode import Sampler, take
from kvx.engines.kvpress.head_size import with_head_size
from kvx.engines.kvpress.kept import KeptPositions, unmasked_positions, watch_positions
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.measure import clear_masks, masked_entries, unmasked
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.model_state import untouched
from kvx.engines.kvpress.parts import packs, zeroes
from kvx.engines.kvpress.positions import cache_positions
from kvx.engines.kvpress.probe import mean_share, probes
from kvx.engines.kvpress.prompt_row import zero_bytes
from kvx.engines.kvpress.proof import prove_budget
from kvx.engines.kvpress.rotary import own_positions
from kvx.engines.kvpress.sequence import Prefill, Rebuild, Row, StepObserver
from kvx.engines.kvpress.states import bytes_held, kv_of, new_cache
from kvx.engines.kvpress.streams import RandomStream
from kvx.engines.kvpress.transformers_versions import cache_argument
from kvx.guard.trace_arrays import PROBE_TOKENS


@dataclass(frozen=True)
class Masked:
    """A compressed prompt in transformers' cache, and logits [tokens, vocab] of its last tokens.

    `position` is the next token's, `evicted` the share of the score mass that was dropped, and
    `kept_percent` as in `Trace`, if they were watched.
    """

    cache: Any
    logits: torch.Tensor
    kv: KVUse
    position: int
    evicted: float | None = None
    kept_percent: list[int] | None = None


def prefill_masked(
    loaded: LoadedModel,
    parts: PromptParts,
    press: Any | None,
    kept_tokens: int,
    keep: int = 1,
    watched: bool = False,
    reads_weights: bool = False,
    kept: KeptPositions | None = None,
) -> Masked:
    """The prompt as kvpress's pipeline runs it, with logits of its last `keep` tokens."""
    model, n = loaded.model, len(parts.compressed_ids)
    clear_masks(model)
    cache = new_cache(model)
    ids = torch.tensor([parts.compressed_ids], device=loaded.device)
    evicted = watch(press) if watched and press is not None else None
    if kept is not None and press is not None:
        watch_positions(press, kept)
    with with_head_size(model), hooked(model, press, cache, reads_weights):
        argument = cache_argument(model, cache)
        out = model(input_ids=ids, **argument, logits_to_keep=1, use_cache=True)
    dead = press is not None and zeroes(press)
    kv, share = _measure(model, cache, n, kept_tokens, dead), mean_share(evicted)
    percent = None if kept is None else _kept_percent(model, cache, kept, n)
    start = round(kv.entries_physical) if press is not None and packs(press) else n
    logits, at_once = out.logits[0].to(loaded.device), len(parts.rest_ids)
    if layers_of(model).recurrent:
        at_once = 1  # a state takes one token at a time
    ends = torch.arange(start, start + len(parts.rest_ids), device=loaded.device)
    rest = torch.tensor(parts.rest_ids, device=loaded.device, dtype=torch.long)
    after: list[torch.Tensor] = []
    parts_at = (torch.split(t, max(1, at_once)) for t in (rest, ends))
    for some, positions in zip(*parts_at, strict=True) if len(rest) else ():
        after.append(_step(model, cache, some[None], positions[None], keep))
    if after:
        logits = torch.cat(after)[-keep:]
    return Masked(cache, logits, kv, start + len(parts.rest_ids), share, percent)


def _kept_percent(model: Any, cache: Any, kept: KeptPositions, n: int) -> list[int] | None:
    layers = layers_of(model).full
    heads = [kv_of(cache, layer.index)[0].shape[1] for layer in layers]
    return (unmasked_positions(layers, heads, n) or kept).percent()


def _step(
    model: Any, cache: Any, ids: torch.Tensor, positions: torch.Tensor, keep: int = 1
) -> torch.Tensor:
    """Logits [tokens, vocab] after the last `keep` of `ids` [1, n] at `positions` [1, n]."""
    told = cache_positions(model, positions[0]) if layers_of(model).recurrent else {}
    out = model(
        input_ids=ids,
        **cache_argument(model, cache),
        position_ids=positions,
        logits_to_keep=keep,
        use_cache=True,
        **told,
    )
    logits: torch.Tensor = out.logits[0]
    return logits


def generate_masked(
    loaded: LoadedModel,
    asked: Submission,
    config: DecodingConfig,
    observers: Sequence[StepObserver],
) -> Row:
    """A sequence from its prompt to its end; the finished row.

    Raises `BudgetContradictedError` for a cache that holds something else than was asked.
    """
    with untouched(loaded.model), own_positions(loaded.model):
        return _generate(loaded, asked, config, observers)


def side_by_side(
    loaded: LoadedModel,
    asked: Submission,
    full: Submission,
    config: DecodingConfig,
    sampler: Sampler,
    observer: StepObserver,
) -> Row:
    """A sequence and its `full` cache, each in transformers' cache, decoded with the same tokens.

    `sampler` and `observer` see both rows at every step, the full cache's last. Returns the first
    row. Raises `BudgetContradictedError` for a cache that holds something else than was asked.
    """
    parts, n = asked.parts, len(asked.parts.compressed_ids)
    assert asked.request is not None
    with untouched(loaded.model), own_positions(loaded.model):
        whole = prefill_masked(loaded, parts, None, n)
        press = None if asked.press is None else asked.press.build()
        with RandomStream(asked.seed, loaded.devices).drawing():
            weights = asked.press is not None and asked.press.reads_weights
            prompt = prefill_masked(loaded, parts, press, asked.kept_tokens, reads_weights=weights)
        prove_budget(asked.request.point, prompt.kv)
        rows = [asked.begin(), full.begin()]
        rows[0].kv, rows[0].position, rows[1].position = prompt.kv, prompt.position, whole.position
        logits = torch.stack([prompt.logits[-1], whole.logits[-1]])
        while True:
            tokens = sampler.choose(rows, logits)
            take(loaded, rows, tokens, config)
            observer.on_step(rows, logits, tokens)
            if rows[1].finish_reason is not None:
                return rows[0]
            at = torch.tensor([[row.position] for row in rows], device=loaded.device)
            compressed = _step(loaded.model, prompt.cache, tokens[:1, None], at[:1])
            with unmasked(loaded.model):
                kept = _step(loaded.model, whole.cache, tokens[1:, None], at[1:])
            logits = torch.cat([compressed, kept])
            for row in rows:
                row.position += 1


def _generate(
    loaded: LoadedModel,
    asked: Submission,
    config: DecodingConfig,
    observers: Sequence[StepObserver],
) -> Row:
    parts, n = asked.parts, len(asked.parts.compressed_ids)
    press = None if asked.press is None else asked.press.build()
    keep, beside = PROBE_TOKENS if asked.probed else 1, None
    if asked.probed and press is not None:
        beside = prefill_masked(loaded, parts, None, n, keep).logits
    with RandomStream(asked.seed, loaded.devices).drawing():
        weights = asked.press is not None and asked.press.reads_weights
        prompt = prefill_masked(
            loaded, parts, press, asked.kept_tokens, keep, asked.watched, weights, asked.kept()
        )
    if asked.request is not None:
        prove_budget(asked.request.point, prompt.kv)
    row = asked.begin()
    row.kv, row.position = prompt.kv, parts.n_tokens
    row.pack(parts.n_tokens - prompt.position)
    probe = None
    if asked.probed:
        both = torch.stack([prompt.logits if beside is None else beside, prompt.logits])
        probe = probes(both, 0)[1]
    first = Prefill(
        prompt.logits[-1],
        parts.n_tokens,
        n,
        probe,
        prompt.evicted,
        kept_percent=prompt.kept_percent,
    )
    _decode(loaded, row, prompt.cache, first, config, observers)
    return row


def _decode(
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
        position = torch.tensor([[row.position]], device=loaded.device)
        logits = _step(loaded.model, cache, tokens[:, None], position)
        row.position += 1


def _measure(model: Any, cache: Any, n_tokens: int, kept_tokens: int, dead_channels: bool) -> KVUse:
    layers = layers_of(model)
    held = [kv_of(cache, layer.index) for layer in layers.full]
    if not held:  # no press compresses such a model
        taken = bytes_held(cache)
        n = float(n_tokens)
        return KVUse(n, n, n, taken, taken, taken, taken, taken, compressed_share=0.0)
    physical = sum(keys.shape[2] for keys, _ in held) / len(held)
    effective = physical - masked_entries(layers.full, [keys.shape[1] for keys, _ in held])
    taken = sum(t.numel() * t.element_size() for kv in held for t in kv)
    dead = sum(zero_bytes(keys) for keys, _ in held) if dead_channels else 0
    fixed, per_entry = layers.row_bytes(n_tokens), taken / physical
    full = n_tokens * per_entry
    return KVUse(
        entries_nominal=float(kept_tokens),
        entries_effective=effective,
        entries_physical=physical,
        bytes_nominal=round(kept_tokens * per_entry) + fixed,
        bytes_effective=round(effective * per_entry) - dead + fixed,
        bytes_physical=taken + fixed,
        bytes_full=round(full) + fixed,
        bytes_peak=taken + fixed,
        compressed_share=full / (full + fixed),
    )
