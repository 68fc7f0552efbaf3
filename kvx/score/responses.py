"""What is said of a response by its text alone, once for all points that gave the same one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from kvx.config.schema import Reasoning
from kvx.data.example import Example
from kvx.score.settings import Judging
from kvx.scoring.catastrophes import REPETITION, Asked, loop_columns
from kvx.scoring.failure_rules import ONLY_REASONING, classify_response
from kvx.scoring.loops import Loop, find_loop
from kvx.scoring.metrics import measured, resolve
from kvx.text.answer import Answer, answer_of
from kvx.text.reasoning import split

KEPT = 2**15  # judged responses that are remembered, some 1.5 kB each


class Response(NamedTuple):
    """What decides how a response is judged; `reasoning` is what a server sent beside the text."""

    example_id: str
    text: str
    finish_reason: str | None
    reasoning: str | None
    opens_reasoning: bool
    has_ids: bool


@dataclass(frozen=True)
class Judged:
    """A response's scores by metric, its failure, and what is seen in its answer.

    `by_words`: loops are sought among the `n_words` of everything generated, for want of token ids
    that stand for the answer. `told`: a server ended the response for repeating itself.
    """

    values: tuple[float, ...]
    predictions: tuple[str, ...]
    references: tuple[str, ...]
    failure: str | None
    message: str | None
    cap_reached: bool
    told: bool
    instruction_kept: bool | None
    question_recall: float | None
    by_words: bool
    n_words: int
    loop: Loop | None  # among words

    def loop_columns(self, loop: Loop | None) -> dict[str, object]:
        """For a `loop` among token ids, unless words stand for them."""
        return loop_columns(self.loop if self.by_words else loop, self.told)


class Judge:
    """Judges the responses to one manifest's examples; metrics and rules are pure functions."""

    def __init__(self, judging: Judging, examples: Mapping[str, Example]) -> None:
        self.judging, self.examples = judging, examples
        self.metrics = resolve(judging.metrics)
        self._asked: dict[str, Asked] = {}
        self._known: dict[Response, Judged] = {}

    def __call__(self, response: Response, request_id: str) -> Judged:
        """Raises `UserError`, which names the request, for what a metric raises or returns."""
        found = self._known.get(response)
        if found is None:
            found = self._judge(response, request_id)
            if len(self._known) >= KEPT:
                del self._known[next(iter(self._known))]  # the oldest
            self._known[response] = found
        return found

    def _judge(self, response: Response, request_id: str) -> Judged:
        answer = self._answer(response)
        example = self.examples[response.example_id]
        scores = [
            measured(name, metric, answer.text, example.answers, request_id, example.meta)
            for name, metric in self.metrics.items()
        ]
        kind = classify_response(
            answer.text, answer.finish_reason, self.judging.answer_format, answer.unfinished
        )
        only = f"{ONLY_REASONING}, no answer" if kind is not None and answer.unfinished else None
        capped = answer.finish_reason == "length"
        by_words = answer.cut or not response.has_ids
        words = _generated(response, answer).split() if by_words else []
        return Judged(
            values=tuple(score.value for score in scores),
            predictions=tuple(score.prediction for score in scores),
            references=tuple(score.reference for score in scores),
            failure=None if kind is None else str(kind),
            message=only,
            cap_reached=capped,
            told=answer.finish_reason == REPETITION,
            by_words=by_words,
            n_words=len(words),
            loop=find_loop(words) if by_words else None,
            **self._asked_of(example).seen_in(answer.text, capped),
        )

    def _answer(self, response: Response) -> Answer:
        """The part of a response that is judged; the stored text stays as it is."""
        strips = self.judging.reasoning is Reasoning.strip
        answer = answer_of(
            response.text,
            response.finish_reason,
            self.judging.until,
            strips,
            opened=response.opens_reasoning,
        )
        beside = strips and response.reasoning is not None
        if beside and not answer.text.strip():  # the server split off reasoning, no text is left
            return replace(answer, unfinished=True)
        return answer

    def _asked_of(self, example: Example) -> Asked:
        found = self._asked.get(example.example_id)
        if found is None:
            found = self._asked[example.example_id] = Asked.of(example.question, example.answers)
        return found


def _generated(response: Response, answer: Answer) -> str:
    """Reasoning and answer, up to where the answer was cut."""
    beside, text = response.reasoning or "", response.text
    if not answer.cut:
        return f"{beside} {text}"
    inside = split(text, response.opens_reasoning).reasoning or ""
    return f"{beside} {inside} {answer.text}"
