"""The server's observers: one turns tokens into text, one counts what controllers did."""

import logging
from collections.abc import Sequence

import torch

from kvx.engines.kvpress.sequence import Action, Row, StepObserver, Stop
from kvx.serve.jobs import Job
from kvx.serve.prometheus import Metrics
from kvx.serve.transcript import Piece, Restart, ScoredToken, TokenLogprob

log = logging.getLogger(__name__)

FAILED = "failed"
LOWEST_LOGPROB = -9999.0  # JSON knows no -inf


class Speaker(StepObserver):
    """The observer that turns tokens into text and log-probabilities, and sees stop strings."""

    def __init__(self) -> None:
        self._heard: dict[int, Job] = {}  # chose a token since `said` was last asked

    def said(self) -> list[tuple[Job, Piece | Restart]]:
        """What can be sent since the last call."""
        heard, self._heard = self._heard, {}
        return [(job, event) for job in heard.values() for event in job.said()]

    def forget(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self._heard.pop(id(job), None)

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Action]:
        scored = self._scores(rows, logits, tokens)
        actions: list[Action] = []
        for index, (row, token) in enumerate(zip(rows, tokens.tolist(), strict=True)):
            job: Job = row.owner
            self._heard[id(job)] = job
            try:
                job.transcript.push(token, scored.get(index, ()))
            except Exception:  # this row's answer; the others go on
                log.exception("serve: a token could not be decoded")
                actions.append(Stop(row, FAILED))
                continue
            if job.transcript.stopped:
                actions.append(Stop(row, "stop"))
        return actions

    def on_rebuilt(self, row: Row, logits: torch.Tensor | None) -> Sequence[Action]:
        job: Job = row.owner
        job.transcript.rewind(job.n_tokens)
        return ()

    def _scores(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> dict[int, tuple[ScoredToken, ...]]:
        """By index, for the rows that ask for log-probabilities."""
        wanted = {i: n for i, row in enumerate(rows) if (n := row.owner.logprobs) is not None}
        if not wanted:
            return {}
        indices = list(wanted)
        logprobs = torch.log_softmax(logits[indices].float(), dim=-1).cpu()
        chosen = tokens[indices].cpu()
        own = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
        values, ids = logprobs.topk(min(max(wanted.values()), logprobs.shape[1]))
        found: dict[int, tuple[ScoredToken, ...]] = {}
        for i, index in enumerate(indices):
            n = wanted[index]
            likeliest = zip(ids[i, :n].tolist(), values[i, :n].tolist(), strict=True)
            top = tuple(TokenLogprob(t, max(p, LOWEST_LOGPROB)) for t, p in likeliest)
            token = TokenLogprob(int(chosen[i]), max(own[i], LOWEST_LOGPROB))
            found[index] = (ScoredToken(token, top),)
        return found


class GuardMetrics(StepObserver):
    """Counts what controllers did, when a row has ended."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def on_end(self, rows: Sequence[Row]) -> None:
        for row in rows:
            for event in row.guard.events if row.guard is not None else ():
                self.metrics.guard_actions.labels(event.action).inc()
                self.metrics.guard_dropped.inc(len(event.dropped_ids))
                if event.milliseconds > 0:
                    self.metrics.guard_pause_s.observe(event.milliseconds / 1000)
