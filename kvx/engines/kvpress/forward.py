"""One forward pass over rows of different length."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch

from kvx.engines.kvpress.attention import Ragged, cache_of, ragged
from kvx.engines.kvpress.cache import SLACK, Bucket
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.positions import cache_positions
from kvx.engines.kvpress.rotary import own_positions
from kvx.engines.kvpress.sequence import Row
from kvx.engines.kvpress.transformers_versions import cache_argument

# a pass over the question takes at most so many tokens of all rows together, and so many pairs of
# one of them and an entry it sees: more are taken in several passes
QUESTION_TOKENS, QUESTION_PAIRS = 2**12, 2**24


def question_tokens(model: Any, rows: int, entries: int) -> int:
    """How many tokens of the question each of `rows` rows with `entries` may take at once."""
    most = max(1, min(QUESTION_TOKENS // rows, QUESTION_PAIRS // (rows * entries)))
    windows = any(layer.window is not None for layer in layers_of(model).cached.values())
    return min(most, SLACK) if windows else most  # a window's buffers have room for so many


def forward(
    loaded: LoadedModel,
    buckets: Sequence[Bucket],
    rows: Sequence[Row],
    ids: torch.Tensor,
    keep: int = 1,
    lengths: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits [rows, keep, vocab] after the last of each row's `ids` [rows, n].

    The ids join its cache. Where there are fewer than `keep`, there are as many logits. `lengths`
    is for ids that are only a part of what belongs to one pass (`own_positions`).
    """
    n = ids.shape[1]
    if n > 1 and buckets[0].state_cache is not None:  # a state takes one token at a time
        if lengths is None:
            lengths = torch.tensor([[row.position + n] for row in rows])
        last = deque[torch.Tensor](maxlen=keep)
        columns = zip(ids.unbind(1), lengths.expand(len(rows), n).unbind(1), strict=True)
        for some, length in columns:
            last.append(forward(loaded, buckets, rows, some[:, None], 1, length[:, None]))
        return torch.cat(list(last), dim=1)
    starts = torch.tensor([[row.position] for row in rows], device=loaded.device)
    positions = starts + torch.arange(n, device=loaded.device)
    layers = layers_of(loaded.model)
    passing = Ragged(buckets, positions, layers.latent, layers.scaled)
    with (
        cache_of(passing, rows[0].position) as cache,
        ragged(loaded.model, passing),
        own_positions(loaded.model, lengths),
    ):
        out: Any = loaded.model(
            input_ids=ids,
            **cache_argument(loaded.model, cache),
            position_ids=positions,
            logits_to_keep=keep,
            use_cache=True,
            **cache_positions(loaded.model, positions[0]),
        )
    passing.advance()
    for row in rows:
        row.position += n
    logits: torch.Tensor = out.logits
    return logits


def extend(
    loaded: LoadedModel,
    bucket: Bucket,
    row: Row,
    ids: Sequence[int],
    at_once: int,
    question: int = 0,
) -> torch.Tensor | None:
    """Logits [1, vocab] after `ids`, which join the cache of the only row of `bucket`.

    Passed `at_once` tokens at a time; None if there are none. The first `question` of them belong
    to one pass, the others are generated tokens.
    """
    logits = None
    batch = torch.tensor([list(ids)], dtype=torch.long, device=loaded.device)
    lengths = row.position + 1 + torch.arange(len(ids))[None]
    lengths[:, :question] = row.position + question
    parts = zip(*(torch.split(whole, at_once, 1) for whole in (batch, lengths)), strict=True)
    for some, length in parts if len(ids) else ():
        logits = forward(loaded, [bucket], [row], some, lengths=length)[:, -1]
    return logits


def question(
    loaded: LoadedModel,
    buckets: Sequence[Bucket],
    rows: Sequence[Row],
    rest: Sequence[int],
    keep: int,
) -> torch.Tensor:
    """Logits [rows, last tokens, vocab] of the rest of the prompt, which joins every cache.

    Of the last `keep` tokens, or as many as there are; there must be one.
    """
    ids = torch.tensor([list(rest)] * len(rows), device=loaded.device)
    entries = max(row.position + row.packed for row in rows) + len(rest)
    lengths = torch.tensor([[row.position + len(rest)] for row in rows])
    last = torch.empty(0)
    for some in torch.split(ids, question_tokens(loaded.model, len(rows), entries), dim=1):
        logits = forward(loaded, buckets, rows, some, keep, lengths)
        several = last.numel() > 0 and logits.shape[1] < keep
        last = torch.cat([last, logits], 1)[:, -keep:] if several else logits
    return last
