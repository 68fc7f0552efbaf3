"""Takes a row back to an earlier token, with its prompt at another budget."""

import time

import torch

from kvx.engines.kvpress.cache import Bucket
from kvx.engines.kvpress.forward import extend, question_tokens
from kvx.engines.kvpress.measure import synchronize
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.sequence import Row
from kvx.guard.live import Change


def rebuild(
    loaded: LoadedModel, row: Row, change: Change, old: Bucket, slot: int
) -> tuple[Bucket, torch.Tensor | None]:
    """A bucket of the row's own with its prompt at `change.budget` and what it has generated.

    It holds all kept tokens but the last, which is the input of the next step. If no token is kept,
    the logits [1, vocab] of the first token are returned too. With `change.recompute` the kept
    tokens pass through the model again; otherwise their entries come from `slot` of `old`.
    """
    origin, guard = row.origin, row.guard
    assert origin is not None
    assert origin.source is not None
    assert guard is not None
    synchronize(*loaded.devices)
    began = time.perf_counter()
    bucket = origin.source.bucket(change.budget, origin.room)
    tokens = row.tokens[: change.n_kept]
    following = [*origin.rest_ids, *tokens[:-1]] if change.recompute else []
    logits = None
    if change.recompute:
        row.position = origin.n_compressed
        at_once = question_tokens(loaded.model, 1, origin.n_compressed + origin.room)
        logits = extend(loaded, bucket, row, following, at_once, len(origin.rest_ids))
    else:
        bucket.continue_from(old, slot)
    row.tokens = tokens
    first = None
    if not tokens:
        first = origin.source.logits[None] if logits is None else logits
    synchronize(*loaded.devices)
    guard.carried_out(change, len(following), 1000 * (time.perf_counter() - began))
    return bucket, first
