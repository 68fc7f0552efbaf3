"""Prefill: the compressed prompt part through the model and the presses, into buckets of rows.

A press that scores and drops entries does so after a layer's attention, so what later layers
compute does not depend on it: one forward pass serves any number of points, each with its own press
compressing each layer as it passes. Other presses get a forward pass of their own.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kvx.engines.kvpress.cache import Bucket
from kvx.engines.kvpress.compress import compressing, in_own_press, runs_itself
from kvx.engines.kvpress.head_size import with_head_size
from kvx.engines.kvpress.layers import CachedLayer, layers_of
from kvx.engines.kvpress.lengths import group_by_length
from kvx.engines.kvpress.measure import clear_masks
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.model_state import untouched
from kvx.engines.kvpress.prompt_row import PromptRow
from kvx.engines.kvpress.rotary import own_positions
from kvx.engines.kvpress.states import KV, empty, forget_states, kv_of, new_cache, states_of
from kvx.engines.kvpress.transformers_versions import cache_argument


@dataclass(frozen=True)
class PromptCaches:
    """Filled buckets; `rows[b]` holds the indices of the rows in bucket b, in order.

    `logits` [vocab] are those after the last compressed token.
    """

    buckets: list[Bucket]
    rows: list[list[int]]
    logits: torch.Tensor

    def beside(self, other: "PromptCaches") -> "PromptCaches":
        """Both, with the rows of the `other` counted after these."""
        n = sum(len(members) for members in self.rows)
        moved = [[n + index for index in members] for members in other.rows]
        return PromptCaches(self.buckets + other.buckets, self.rows + moved, self.logits)


def prefill(
    loaded: LoadedModel, ids: Sequence[int], rows: Sequence[PromptRow], room: int, alone: bool
) -> PromptCaches:
    """One forward pass over the token `ids` for all `rows`.

    `alone` is a single row; its press runs in its own context if it has one, for presses that
    change the forward pass. A press that fails leaves its error in its row and touches no other.
    """
    model, layers = loaded.model, layers_of(loaded.model)
    groups = group_by_length([row.kept_tokens for row in rows])
    buckets = [Bucket(len(group), room) for group in groups]
    cache = new_cache(model)

    def store(layer: CachedLayer, compressed: Sequence[KV]) -> None:
        for row, kept in zip(rows, compressed, strict=True):
            row.stored(layer, kept)
        for bucket, group in zip(buckets, groups, strict=True):
            bucket.fill(layer, [compressed[i] for i in group])

    for row in rows:
        row.room = room
    clear_masks(model)
    batch = torch.tensor([list(ids)], device=loaded.device)
    with contextlib.ExitStack() as during:
        during.callback(clear_masks, model)
        itself = alone and runs_itself(rows[0])
        if itself and loaded.owned:
            during.enter_context(untouched(model))
        for context in (with_head_size(model), own_positions(model)):
            during.enter_context(context)
        if itself:
            during.enter_context(rows[0].stream.drawing())
            during.enter_context(in_own_press(model, rows[0], cache))
        else:
            during.enter_context(compressing(model, cache, rows, store, loaded.owned))
        argument = cache_argument(model, cache)
        out = model(input_ids=batch, **argument, logits_to_keep=1, use_cache=True)
    if itself:
        for index, layer in layers.cached.items():
            store(layer, [kv_of(cache, index)])
            empty(cache, index)  # the bucket holds it now
    logits = out.logits[0, -1].clone().to(loaded.device)  # one position: shadows keep it
    states = states_of(cache) if layers.recurrent else {}
    for row in rows:
        row.fixed_bytes += sum(t.numel() * t.element_size() for t in states.values())
        if row.shadow is not None:
            row.shadow.prompt.finish(logits, states, cache)
    if states:
        for bucket in buckets:
            bucket.keep_states(states, cache)
        forget_states(cache)
    return PromptCaches(buckets, groups, logits)
