"""Metrics of the first number, or of a word, of a prediction: InfiniteBench's and SCBench's."""

import re
from collections.abc import Sequence
from decimal import Decimal

from kvx.scoring.metrics.base import Score, best, equal, metric

_BLANKED = str.maketrans(dict.fromkeys("\n:\"'.,?!{}", " "))
_NUMBER = re.compile(r"[0-9]+\.[0-9]+|[0-9]+")
_INTEGER = re.compile(r"[0-9]+")


def _one_word(answers: Sequence[str]) -> str | None:
    for answer in answers:
        if [answer] != answer.translate(_BLANKED).split():
            return f"reference {answer[:60]!r} is not one word once its punctuation is blanked"
    return None


def _is_integer(answers: Sequence[str]) -> str | None:
    wrong = next((a for a in answers if not _INTEGER.fullmatch(a)), None)
    return None if wrong is None else f"reference {wrong[:60]!r} is not a whole number"


def _is_number(answers: Sequence[str]) -> str | None:
    wrong = next((a for a in answers if not _NUMBER.fullmatch(a)), None)
    return None if wrong is None else f"reference {wrong[:60]!r} is not a number without sign"


@metric(binary=True, fits=_is_integer)
def first_integer(prediction: str, answers: Sequence[str]) -> Score:
    """1 if the first run of digits is a reference, digit for digit; InfiniteBench's passkey."""
    return best(_first(_INTEGER, prediction), answers, equal)


@metric(binary=True, fits=_is_number)
def first_number(prediction: str, answers: Sequence[str]) -> Score:
    """1 if the first number, without its sign, equals a reference; InfiniteBench's math_find.

    A decimal is never equal to a whole number; the benchmark's own code raises on one.
    """
    ours = _first(_NUMBER, prediction)
    return best(ours, answers, lambda a, b: float(_same_kind(a, b) and _same_number(a, b)))


@metric(binary=True, fits=_is_integer)
def first_number_cut(prediction: str, answers: Sequence[str]) -> Score:
    """1 if the first number without its fraction is a reference; SCBench's math_find."""
    ours = _first(_NUMBER, prediction).partition(".")[0]
    return best(ours, answers, lambda a, b: float(_same_number(a, b)))


@metric(binary=True, fits=_one_word)
def word_contained(prediction: str, answers: Sequence[str]) -> Score:
    """1 if a reference is one of the words between white space and `:"'.,?!{}`, case as it is.

    InfiniteBench's kv_retrieval. References must be one such word.
    """
    words = set(prediction.translate(_BLANKED).split())
    return best(prediction.strip(), answers, lambda _, reference: float(reference in words))


@metric(binary=True)
def contained(prediction: str, answers: Sequence[str]) -> Score:
    """1 if the prediction contains a reference, case as it is; SCBench's retrieval tasks."""
    return best(prediction, [a for a in answers if a], lambda a, b: float(b in a))


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found[0] if found else ""


def _same_kind(ours: str, reference: str) -> bool:
    return ours != "" and not ("." in ours and "." not in reference)


def _same_number(ours: str, reference: str) -> bool:
    """Whether both are numbers, and the same."""
    both = _NUMBER.fullmatch(ours) and _NUMBER.fullmatch(reference)
    return both is not None and Decimal(ours) == Decimal(reference)
