"""LongBench's metrics of answers that are one number: which paragraph, or how many."""

import re
from collections.abc import Callable, Sequence

from kvx.errors import shown
from kvx.scoring.metrics.base import Fits, Score, best, metric

_NUMBER = re.compile(r"\d+")
_PARAGRAPH, _PARAGRAPH_ZH = re.compile(r"Paragraph (\d+)"), re.compile(r"段落(\d+)")


def _whole(answer: str) -> str | None:
    return answer


def _after(pattern: re.Pattern[str]) -> Callable[[str], str | None]:
    def number(answer: str) -> str | None:
        found = pattern.search(answer)
        return found[1] if found else None

    return number


def _has(number: Callable[[str], str | None], wanted: str) -> Fits:
    def fits(answers: Sequence[str]) -> str | None:
        if any(_NUMBER.fullmatch(number(answer) or "") for answer in answers):
            return None
        return f"no {wanted} in its reference {shown(answers[0] if answers else '')}"

    return fits


@metric(fits=_has(_whole, "plain number"))
def count(prediction: str, answers: Sequence[str]) -> Score:
    """Share of the numbers in the prediction that are the reference; LongBench's count_score.

    A number is a run of digits: "1,024" holds two. Without a number the value is 0.
    """
    return _share(prediction, answers, _whole)


@metric(fits=_has(_after(_PARAGRAPH), "'Paragraph <number>'"))
def retrieval(prediction: str, answers: Sequence[str]) -> Score:
    """Share of the numbers in the prediction that are the reference paragraph's.

    LongBench's retrieval_score; references are such as "Paragraph 12".
    """
    return _share(prediction, answers, _after(_PARAGRAPH))


@metric(fits=_has(_after(_PARAGRAPH_ZH), "'段落<number>'"))
def retrieval_zh(prediction: str, answers: Sequence[str]) -> Score:
    """`retrieval` with references such as "段落12"; LongBench's retrieval_zh_score."""
    return _share(prediction, answers, _after(_PARAGRAPH_ZH))


def _share(prediction: str, answers: Sequence[str], number: Callable[[str], str | None]) -> Score:
    named = _NUMBER.findall(prediction)
    references = [found for answer in answers if (found := number(answer)) is not None]
    return best(
        " ".join(named),
        references,
        lambda _, reference: named.count(reference) / len(named) if named else 0.0,
    )
