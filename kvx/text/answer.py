"""What of a generated text is the answer: without reasoning, and up to the first stop string."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvx.text.incremental import first_stop
from kvx.text.reasoning import split

ENDED, CAPPED = "stop", "length"


@dataclass(frozen=True)
class Answer:
    """The `text` to judge, and how it ended.

    `finish_reason` is "stop" where a stop string ends the text, whatever came after it. `cut`:
    something was left out behind one. `unfinished`: all of it is reasoning that never ended.
    """

    text: str
    finish_reason: str | None
    cut: bool = False
    unfinished: bool = False


def answer_of(
    text: str,
    finish_reason: str | None,
    until: Sequence[str] = (),
    strip_reasoning: bool = True,
    opened: bool = False,
) -> Answer:
    """What of `text` is to be judged. `opened`: its prompt ended with an open reasoning tag.

    Reasoning goes first, so that a stop string inside it ends nothing.
    """
    unfinished = False
    if strip_reasoning:
        parts = split(text, opened)
        if parts.reasoning is not None or parts.answer != text:
            text, unfinished = parts.answer, not parts.closed
    at = first_stop(text, until)
    if at is None:
        return Answer(text, finish_reason, unfinished=unfinished)
    return Answer(text[:at], ENDED, cut=True)
