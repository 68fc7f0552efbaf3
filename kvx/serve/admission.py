"""A job's prompt through the model: its row, compressed and ready for its next token."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kvx.engines.kvpress.cache import Bucket
from kvx.engines.kvpress.forward import extend, question
from kvx.engines.kvpress.guarded import live_policy, shadow_of, source_of
from kvx.engines.kvpress.model import LoadedModel, resolve_attention
from kvx.engines.kvpress.prefill import PromptCaches, PromptRow, kv_use, prefill
from kvx.engines.kvpress.press import PointPress, runs_alone
from kvx.engines.kvpress.probe import mean_share, probes
from kvx.engines.kvpress.proof import bytes_host, prove_budget
from kvx.engines.kvpress.rows import Origin, Prefill, Row, without
from kvx.engines.kvpress.schedule import question_tokens
from kvx.engines.kvpress.shadow import PromptShadow
from kvx.engines.kvpress.streams import RandomStream
from kvx.guard.live import SequenceGuard
from kvx.guard.trace_arrays import PROBE_TOKENS
from kvx.points import Point
from kvx.serve.jobs import Job


class PressFailedError(Exception):
    """A press cannot compress a prompt."""

    def __init__(self, point: Point, error: Exception) -> None:
        press, reason = point.config.press.name, first_line(error) or type(error).__name__
        super().__init__(f"press={press} cannot compress this prompt: {reason}")


@dataclass(frozen=True)
class Admitted:
    """The bucket with a job's row, and what its next token is chosen from: logits [1, vocab].

    For a row that has tokens, these are in the bucket but for the last one.
    """

    bucket: Bucket
    logits: torch.Tensor
    prefill: Prefill


def admitted(loaded: LoadedModel, job: Job) -> Admitted:
    """Prefill a job, new or to be tried again; sets its row.

    Raises `PressFailedError` if the press is at fault: some refuse some short prompts.
    """
    loaded.set_attention(resolve_attention(job.request.point.config))
    return _guarded(loaded, job) if job.guarded else _plain(loaded, job)


def _plain(loaded: LoadedModel, job: Job) -> Admitted:
    """Without a guard. A row that has tokens already gets them into its cache."""
    point, parts = job.request.point, job.parts
    n, rest = len(parts.compressed_ids), parts.rest_ids
    prompt = _prompt(loaded, job)
    alone = runs_alone(point)
    caches = _compressed(loaded, job, [prompt], rest, alone)
    if job.row is None:
        job.row = _row(job)
    row = job.row
    row.position, row.packed, row.kv = n, 0, kv_use(prompt, n)
    row.pack(prompt.packed(n))
    prove_budget(point, row.kv)
    (bucket,) = caches.buckets
    following = [*rest, *row.tokens[:-1]]
    at_once = question_tokens(1, n + len(following))
    logits = extend(loaded, bucket, row, following, at_once)
    if logits is None:
        logits = loaded.logits(caches.hidden)[None]
    return Admitted(bucket, logits, Prefill(logits[0], parts.n_tokens, n))


def _guarded(loaded: LoadedModel, job: Job) -> Admitted:
    """With a guard of its own, and beside a full cache that it is compared with.

    What a job had said before it is tried again counts as part of the prompt.
    """
    point, parts, before = job.request.point, job.parts, job.row
    config, n = point.config, len(parts.compressed_ids)
    said = job.said_ids
    rest = [*parts.rest_ids, *said]
    guard = SequenceGuard(
        live_policy(config.controller, config.guard), config.guard, point.kept_share(n),
        str(job.seed),
    )  # fmt: skip
    prompt = _prompt(loaded, job)
    prompt.watched, prompt.shadow = True, shadow_of(guard, PromptShadow(loaded.device))
    full = PromptRow(None, n, RandomStream(job.seed, loaded.devices))
    caches = _compressed(loaded, job, [prompt, full], rest, alone=False)
    row = _row(job, guard)
    if before is not None and said:  # it goes on; else it begins as if nothing had been
        row.generator = before.generator
    if before is not None:
        row.started = before.started
    job.row = row
    row.kv = kv_use(prompt, n)
    prove_budget(point, row.kv)
    source = source_of(loaded, parts.compressed_ids, prompt, guard, caches.hidden)
    assert row.decoding is not None
    row.origin = Origin(source, n, rest, row.decoding.max_new_tokens, config.press.name)
    job.host_bytes = bytes_host(row)
    beside = _row(job)
    pair = [row, beside]
    buckets = [
        (bucket, [pair[i] for i in members])
        for bucket, members in zip(caches.buckets, caches.rows, strict=True)
    ]
    order = [r for _, rows in buckets for r in rows]
    if rest:
        logits = question(loaded, [bucket for bucket, _ in buckets], order, rest, PROBE_TOKENS)
    else:
        logits = loaded.logits(caches.hidden).expand(2, 1, -1)
    own, other = (0, 1) if order[0] is row else (1, 0)
    probe = probes(logits, other)[own]
    ((bucket, _),) = without(buckets, beside)
    first = logits[own, -1]
    seen = Prefill(
        first, parts.n_tokens + len(said), n, probe, mean_share(prompt.evicted),
        logits[other, -1].clone(),
    )  # fmt: skip
    return Admitted(bucket, first[None], seen)


def _prompt(loaded: LoadedModel, job: Job) -> PromptRow:
    point, n = job.request.point, len(job.parts.compressed_ids)
    stream = RandomStream(job.seed, loaded.devices)
    return PromptRow(PointPress(point, n), point.kept_tokens(n), stream)


def _row(job: Job, guard: SequenceGuard | None = None) -> Row:
    asked = job.request.point.config.decoding
    return Row(
        job.request,
        len(job.parts.compressed_ids),
        generator=torch.Generator().manual_seed(job.seed),
        decoding=replace(asked, max_new_tokens=asked.max_new_tokens - job.n_before),
        ignore_stop=job.ignore_stop,
        guard=guard,
    )


def _compressed(
    loaded: LoadedModel, job: Job, prompts: Sequence[PromptRow], rest: Sequence[int], alone: bool
) -> PromptCaches:
    """The compressed part in buckets with room for the `rest` and what is generated."""
    point = job.request.point
    room = len(rest) + point.config.decoding.max_new_tokens - job.n_before
    try:
        caches = prefill(loaded, job.parts.compressed_ids, prompts, room, alone)
    except Exception as error:
        if alone and not _is_memory(error):
            raise PressFailedError(point, error) from error
        raise
    if (reason := prompts[0].error) is not None:
        if _is_memory(reason):
            raise reason
        raise PressFailedError(point, reason)
    return caches


def _is_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError)


def first_line(error: Exception) -> str:
    """The first line of its message; may be empty."""
    return (str(error).splitlines() or [""])[0]
