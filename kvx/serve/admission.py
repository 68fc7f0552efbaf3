"""A job's prompt through the model: its row, compressed and ready for its next token."""

from dataclasses import replace
from functools import partial

import torch

from kvx.engines.kvpress.admission import Admission, Submission, admit
from kvx.engines.kvpress.guarded import live_policy
from kvx.engines.kvpress.model import LoadedModel, resolve_attention
from kvx.engines.kvpress.press import PointPress, runs_alone
from kvx.engines.kvpress.proof import BudgetContradictedError, bytes_host
from kvx.guard.live import SequenceGuard
from kvx.points import Point
from kvx.serve.jobs import Job


class PressFailedError(Exception):
    """A press cannot compress a prompt."""

    def __init__(self, point: Point, error: Exception) -> None:
        press, reason = point.config.press.name, first_line(error) or type(error).__name__
        super().__init__(f"press={press} cannot compress this prompt: {reason}")


def admitted(loaded: LoadedModel, job: Job) -> Admission:
    """Prefill a job, new or to be tried again; sets its row.

    A row without a guard goes on with the tokens it has; all but the last are then in its cache.
    With a guard the job gets a new row, and what it had said before counts as part of the prompt.
    Raises `PressFailedError` if the press is at fault: some refuse some short prompts.
    """
    point, before = job.request.point, job.row
    loaded.set_attention(resolve_attention(point.config))
    found = admit(loaded, [_submission(job)], runs_alone(point) and not job.guarded)
    for _, error in found.refused:
        if isinstance(error, BudgetContradictedError | MemoryError | torch.OutOfMemoryError):
            raise error
        raise PressFailedError(point, error) from error
    (job.row,) = found.rows
    if job.guarded:
        job.host_bytes = bytes_host(job.row)
        if before is not None:
            job.row.started = before.started
            if job.said_ids:  # it goes on; else it begins as if nothing had been
                job.row.generator = before.generator
    return found


def _submission(job: Job) -> Submission:
    point, parts, row = job.request.point, job.parts, job.row
    config, n = point.config, len(parts.compressed_ids)
    guard = None
    said = [] if row is None else row.tokens[:-1]
    if job.guarded:
        policy = live_policy(config.controller, config.guard)
        guard = partial(SequenceGuard, policy, config.guard, point.kept_share(n), str(job.seed))
        said = job.said_ids
    left = config.decoding.max_new_tokens - len(said)
    return Submission(
        replace(parts, rest_ids=[*parts.rest_ids, *said]),
        PointPress(point, n),
        config.press.name,
        point.kept_tokens(n),
        left,
        job.seed,
        job.request,
        replace(config.decoding, max_new_tokens=left),
        job.ignore_stop,
        watched=job.guarded,
        probed=job.guarded,
        guard=guard,
        row=None if job.guarded else row,
    )


def first_line(error: Exception) -> str:
    """The first line of its message; may be empty."""
    return (str(error).splitlines() or [""])[0]
