"""The answer in a generated text: without reasoning, and up to the first stop string."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvx.text.incremental import first_stop
from kvx.text.reasoning import split

ENDED = "stop"


@dataclass(frozen=True)
class Answer:
    """The `text` to judge, and how it ended.

    `cut`: a stop string ended the text; then `finish_reason` is "stop", whatever came after.
    `unfinished`: the whole text is reasoning that never ended.
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
    """The part of `text` to judge. `opened`: its prompt ended with an open reasoning tag.

    Reasoning is removed first, so that a stop string inside it ends nothing.
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
