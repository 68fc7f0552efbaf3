"""Answers in the API's shape: whole bodies and the chunks of a stream."""

import dataclasses
import math
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from kvx.config.identity import resolved
from kvx.engines.base import BudgetProof, kept_as_asked
from kvx.guard.events import INTERVENTIONS, Guarded, GuardEvent
from kvx.serve.jobs import Done, Job
from kvx.serve.service import Ticket
from kvx.serve.tokens import chat_logprobs, completion_logprobs, token_text
from kvx.serve.transcript import Piece, Restart

Json = dict[str, Any]


class Reply(ABC):
    """One answer; a subclass per endpoint knows what a choice looks like."""

    id_prefix: str
    whole_object: str
    chunk_object: str

    def __init__(self, ticket: Ticket) -> None:
        self.job: Job = ticket.job
        self.tokenizer = ticket.service.tokenizer
        self.wants_logprobs = ticket.asked.logprobs_asked is not None
        options = ticket.asked.stream_options
        self.wants_usage = options is not None and options.include_usage
        self._head = {
            "id": f"{self.id_prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": ticket.asked.model,
        }

    @abstractmethod
    def choice(self, pieces: Sequence[Piece]) -> Json:
        """The only choice of a whole body, without its finish reason."""

    @abstractmethod
    def delta(self, piece: Piece | None) -> Json:
        """The only choice of a chunk, without its finish reason."""

    def opening(self) -> Json | None:
        """The chunk before the first piece, if there is one."""
        return None

    def body(self, pieces: Sequence[Piece], done: Done) -> Json:
        choice = {"index": 0, **self.choice(pieces), "finish_reason": done.finish_reason}
        return {
            **self._head,
            "object": self.whole_object,
            "choices": [choice],
            "usage": self._usage(done),
            "kvx": proof(self.job, done),
        }

    def chunk(self, piece: Piece | None, done: Done | None = None) -> Json:
        """A piece of the answer, or with `done` its end and the proof of its budget."""
        reason = None if done is None else done.finish_reason
        choice = {"index": 0, **self.delta(piece), "finish_reason": reason}
        return self._chunk([choice]) | ({} if done is None else {"kvx": proof(self.job, done)})

    def restart(self, event: Restart) -> Json:
        """The chunk that says how much of the streamed text is still valid."""
        kept = {"kept_characters": event.kept_characters, "kept_tokens": event.kept_tokens}
        return self.chunk(None) | {"kvx": {"restart": kept}}

    def closing(self, done: Done) -> list[Json]:
        """The chunks after the last piece; the last of them carries the proof of the budget."""
        chunks = [self.chunk(None, done)]
        if self.wants_usage:
            last = self._chunk([]) | {"usage": self._usage(done), "kvx": proof(self.job, done)}
            chunks.append(last)
        return chunks

    def _chunk(self, choices: list[Json]) -> Json:
        usage = {"usage": None} if self.wants_usage else {}
        return {**self._head, "object": self.chunk_object, "choices": choices, **usage}

    def _usage(self, done: Done) -> Json:
        prompt = self.job.parts.n_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": done.completion_tokens,
            "total_tokens": prompt + done.completion_tokens,
        }


class ChatReply(Reply):
    id_prefix, whole_object = "chatcmpl", "chat.completion"
    chunk_object = "chat.completion.chunk"

    def choice(self, pieces: Sequence[Piece]) -> Json:
        text = "".join(p.text for p in pieces)
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": self._logprobs(pieces)}

    def delta(self, piece: Piece | None) -> Json:
        if piece is None:
            return {"delta": {}, "logprobs": None}
        return {"delta": {"content": piece.text}, "logprobs": self._logprobs([piece])}

    def opening(self) -> Json:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
        return self._chunk([choice])

    def _logprobs(self, pieces: Sequence[Piece]) -> Json | None:
        scored = tuple(s for p in pieces for s in p.scored)
        return chat_logprobs(self.tokenizer, scored) if self.wants_logprobs else None


class CompletionReply(Reply):
    id_prefix, whole_object = "cmpl", "text_completion"
    chunk_object = "text_completion"

    def __init__(self, ticket: Ticket) -> None:
        super().__init__(ticket)
        self._ends = [0]  # of the tokens with a log-probability, in characters

    def choice(self, pieces: Sequence[Piece]) -> Json:
        return {"text": "".join(p.text for p in pieces), "logprobs": self._logprobs(pieces)}

    def delta(self, piece: Piece | None) -> Json:
        if piece is None:
            return {"text": "", "logprobs": None}
        return self.choice([piece])

    def restart(self, event: Restart) -> Json:
        del self._ends[event.kept_tokens + 1 :]
        return super().restart(event)

    def _logprobs(self, pieces: Sequence[Piece]) -> Json | None:
        if not self.wants_logprobs:
            return None
        scored = tuple(s for p in pieces for s in p.scored)
        shown = completion_logprobs(self.tokenizer, scored, self._ends[-1])
        for token in scored:
            length = len(token_text(self.tokenizer, token.chosen.token_id))
            self._ends.append(self._ends[-1] + length)
        return shown


def proof(job: Job, done: Done) -> Json:
    """The budget and what the cache really held: `"kvx"` of every answer."""
    config = job.request.point.config
    controller = config.controller.name
    certified = job.certified
    return {
        "press": config.press.name,
        "budget": config.budget.amount,
        "budget_kind": config.budget.kind.name,
        "method": resolved(config.press.method),
        "kv": dataclasses.asdict(done.kv),
        **({} if (note := _note(job, done)) is None else {"note": note}),
        **({} if certified is None else {"certified": certified}),
        **({} if done.guard is None else {"guard": guard_report(controller, done.guard)}),
    }


def _note(job: Job, done: Done) -> str | None:
    """Why the number of kept entries differs from the server's or the request's budget."""
    if job.note is not None:
        return job.note
    press, kv = job.request.point.config.press, done.kv
    proof_of_it = kept_as_asked(press, kv.entries_nominal, kv.entries_effective)
    if proof_of_it is not BudgetProof.BY_METHOD:
        return None
    return (
        f"press={press.name} was asked to keep {kv.entries_nominal:g} entries and keeps "
        f"{kv.entries_effective:g} by its method"
    )


def guard_report(controller: str, guard: Guarded) -> Json:
    """What a controller did to an answer."""
    return {
        "controller": controller,
        "interventions": sum(event.action in INTERVENTIONS for event in guard.events),
        "mean_budget": guard.mean_budget,
        "decoded_tokens": guard.decoded_tokens,
        "recomputed_tokens": guard.recomputed_tokens,
        "bytes_host": guard.bytes_host,
        "events": [_event(event) for event in guard.events],
    }


def _event(event: GuardEvent) -> Json:
    """The event with a count in place of the dropped tokens; JSON has no infinity."""
    shown = dataclasses.asdict(event)
    dropped = shown.pop("dropped_ids")
    probe = event.probe_nats
    if probe is not None and not math.isfinite(probe):
        shown["probe_nats"] = None
    return shown | {"dropped_tokens": len(dropped)}
