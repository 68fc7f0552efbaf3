"""Fidelity: every point's next-token distributions along the full cache's own greedy answer.

The points of an example share its prefill with one more row, the full cache's, which leads: at each
step its likeliest token is given to every row, so all are compared at the same text and no logits
are kept from step to step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from kvx.config.schema import Config, DecodingConfig
from kvx.data.example import Example
from kvx.engines.activity import ACTIVITY
from kvx.engines.base import Fidelity, PointFailed, PointWork
from kvx.engines.kvpress.account import Account
from kvx.engines.kvpress.admission import Submission, admit
from kvx.engines.kvpress.batch import Batch
from kvx.engines.kvpress.decode import Decoder, Sampler
from kvx.engines.kvpress.divergence import compare
from kvx.engines.kvpress.linear import fast_linears
from kvx.engines.kvpress.masked import side_by_side
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.press_queries import ranked
from kvx.engines.kvpress.proof import BudgetContradictedError, failure, prove_budget
from kvx.engines.kvpress.sequence import Action, Row, StepObserver
from kvx.points import Request

Answers = dict[tuple[str, str], list[int]]  # the full cache's tokens, by variant and example


class Leader(Sampler):
    """Gives every row the full cache's likeliest token, or the one `known` from an earlier pass.

    `known` grows by what is chosen. The leading row has no request.
    """

    def __init__(self, config: DecodingConfig, known: list[int]) -> None:
        super().__init__(config)
        self.known = known

    def choose(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
        at, own = leading(rows), super().choose(rows, logits)  # which refuses nan in any row
        step = len(rows[at].tokens)
        if step == len(self.known):
            self.known.append(int(own[at]))
        return torch.full_like(own, self.known[step])


def leading(rows: Sequence[Row]) -> int:
    """The index of the full cache's row."""
    return next(index for index, row in enumerate(rows) if row.asked is None)


@dataclass
class Along:
    """What was seen of one row, a value per position."""

    kl_nats: list[float] = field(default_factory=list)
    same_top1: list[bool] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    full_logprob: list[float] = field(default_factory=list)


class Watch(StepObserver):
    """Compares every row with the leading one, step by step."""

    def __init__(self) -> None:
        self.seen: dict[int, Along] = {}  # by id of the row

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Action]:
        at = leading(rows)
        others = [index for index in range(len(rows)) if index != at]
        found = compare(logits[at], logits[others], int(tokens[at]))
        for place, index in enumerate(others):
            along = self.seen.setdefault(id(rows[index]), Along())
            along.kl_nats.append(found.kl_nats[place])
            along.same_top1.append(found.same_top1[place])
            along.logprob.append(found.logprob[place])
            along.full_logprob.append(found.full_logprob)
        return ()


class Comparison:
    """Points of one variant that share their prefills; `answers` is filled and read."""

    def __init__(
        self,
        loaded: LoadedModel,
        config: Config,
        account: Account,
        date: str | None,
        answers: Answers,
    ) -> None:
        # along a greedy answer, whatever the points' decoding; no request is timed
        decoding = replace(config.decoding, temperature=0.0, timeout_s=None)
        self.loaded, self.config, self.answers = loaded, replace(config, decoding=decoding), answers
        self.batch = Batch(loaded, self.config, account, StepObserver(), date)
        self.batch.probing = True  # each prefill holds a full cache too
        self.failed: set[Path] = set()

    def run(self, work: Sequence[PointWork]) -> Iterator[Fidelity | PointFailed]:
        """Exactly one result per request, unless its point fails."""
        with fast_linears(self.loaded.model):
            for chunk in self.batch.chunks(work):
                yield from self._chunk(chunk.example, chunk.requests, chunk.alone)

    def _chunk(
        self, example: Example, requests: Sequence[Request], alone: bool
    ) -> Iterator[Fidelity | PointFailed]:
        left = [r for r in requests if r.point.dir not in self.failed]
        if not left:
            return
        ACTIVITY.begin(left)
        try:
            found = self._together(example, left, alone)
        except Exception as error:  # noqa: BLE001  a press may raise anything
            if len(left) > 1:
                for request in left:
                    yield from self._chunk(example, [request], alone)
                return
            found = [self._not(left[0], error)]
        yield from found

    @torch.inference_mode()
    def _together(
        self, example: Example, requests: Sequence[Request], alone: bool
    ) -> list[Fidelity | PointFailed]:
        known = self.answers.setdefault((requests[0].point.variant_id, example.example_id), [])
        asked = [self._submission(request, example, alone) for request in requests]
        leader = replace(
            asked[0], press=None, press_name="none", request=None, alone=False,
            kept_tokens=len(asked[0].parts.compressed_ids), owner=None,
        )  # fmt: skip
        watch, sampler = Watch(), Leader(self.config.decoding, known)
        if asked[0].in_transformers:
            rows = [
                side_by_side(self.loaded, asked[0], leader, self.config.decoding, sampler, watch)
            ]
            return [self._seen(row, watch) for row in rows]
        decoder = Decoder(self.loaded, self.config.decoding, [watch], sampler)
        admitted = admit(self.loaded, [*asked, leader])
        results = [self._not(requests[index], error) for index, error in admitted.refused]
        rows = [row for row in admitted.rows if row.asked is not None]
        if rows:
            decoder.admit(admitted.buckets, admitted.prefills, admitted.logits)
            while decoder.rows:
                decoder.step()
        return [*results, *(self._seen(row, watch) for row in rows)]

    def _submission(self, request: Request, example: Example, alone: bool) -> Submission:
        asked = self.batch.submission(self.batch.asked(request, example, alone))
        decoding = request.decoding and replace(request.decoding, temperature=0.0)
        return replace(asked, decoding=decoding, watched=False, probed=False)

    def _seen(self, row: Row, watch: Watch) -> Fidelity:
        request, along, kv = row.request, watch.seen[id(row)], row.kv
        assert kv is not None
        return Fidelity(
            request,
            row.tokens,
            along.kl_nats,
            along.same_top1,
            along.logprob,
            along.full_logprob,
            kv=kv,
            budget_proof=prove_budget(request.point, kv),
            ranked=ranked(self.loaded, request.point, request.entry.compressed_tokens),
        )

    def _not(self, request: Request, error: Exception) -> Fidelity | PointFailed:
        if isinstance(error, BudgetContradictedError):
            self.failed.add(request.point.dir)
            return PointFailed(request.point, str(error))
        failed = failure(request, error)
        return Fidelity(request, error_type=failed.error_type, error_message=failed.error_message)
