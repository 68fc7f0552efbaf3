"""The metric of numbers, and the number that a text answers with."""

import re
from collections.abc import Sequence
from decimal import Decimal

from kvx.errors import shown
from kvx.scoring.metrics.base import Score, best, equal, metric

# Every pattern below reads a text in linear time: a degenerate generation is 10^4 digits or commas.
_MINUS = str.maketrans({"−": "-", "–": "-", "﹣": "-", "－": "-"})
_SEPARATOR = re.compile(r"(?<=\d)(?:\{,\}|,?\\[,!]|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))")
_NUMBER = re.compile(
    r"((?<![\w)\]}])-)?"  # in 10-3 the hyphen is an operator or a range, not a sign
    r"\\?\$?(\d+(?:,\d+)*(?:\.\d+)?|(?<![\d.])\.\d+)"
)
_MARKED = re.compile(r"####[\s*:]*" + _NUMBER.pattern)
_STATED = re.compile(
    rf"{_MARKED.pattern}|\\boxed\s*\{{[^{{}}\n]*\d|\banswer(?: is|:)[\s*:]{{0,4}}{_NUMBER.pattern}",
    re.IGNORECASE,
)
# headings of worked examples and conversation turns, and of their answers
_BEGINS = r"^[ \t]*(?:\*\*|#{1,6}[ \t])?(?:"
_ENDS = r")(?:[ \t]*#?\d{1,4})?(?:\*\*)?[ \t]*[:.)]"
_QUESTION = re.compile(
    rf"{_BEGINS}question|problem|exercise|example|q|user|human{_ENDS}", re.IGNORECASE | re.MULTILINE
)
_ANSWER = re.compile(rf"{_BEGINS}answer|solution|a{_ENDS}", re.IGNORECASE | re.MULTILINE)
_BOXED = re.compile(r"\\boxed\s*\{")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{2,3})*,\d{3}")  # also Indian: 1,00,000


def _has_number(answers: Sequence[str]) -> str | None:
    if any(find_number(answer) is not None for answer in answers):
        return None
    return f"no number in its reference {shown(answers[0] if answers else '')}"


@metric(binary=True, fits=_has_number)
def numeric(prediction: str, answers: Sequence[str]) -> Score:
    """1 if prediction and any reference state the same number (`find_number`); for GSM8K.

    Without a number in the prediction the value is 0 and `Score.prediction` is empty.
    """
    references = [text for a in answers if (text := _plain(find_number(a)))]
    return best(_plain(find_number(prediction)), references, equal)


def find_number(text: str) -> Decimal | None:
    r"""The number a text answers with, or None.

    It is the one after the last `####` (GSM8K's mark), else the last inside the last `\boxed{}`,
    else the last in the text. A heading such as `Question:` after a stated answer begins another
    example, which does not count. `$`, `%` and thousands separators are dropped; a Unicode minus is
    a sign. Fractions are not evaluated: `1/2` ends with the number 2.
    """
    text = _first_example(_SEPARATOR.sub("", text.translate(_MINUS)))
    if number := _last(_MARKED, text):
        return _decimal(number)
    for rest in reversed(_BOXED.split(text)[1:]):
        if number := _last(_NUMBER, _until_closed(rest)):
            return _decimal(number)
    number = _last(_NUMBER, text)
    return _decimal(number) if number else None


def _first_example(text: str) -> str:
    """`text` up to where it goes on to another question after it has stated an answer."""
    ends = [_heading_after(_STATED, _QUESTION, text), _heading_after(_MARKED, _ANSWER, text)]
    return text[: min(ends)]


def _heading_after(answer: re.Pattern[str], heading: re.Pattern[str], text: str) -> int:
    stated = answer.search(text)
    found = heading.search(text, stated.end()) if stated else None
    return len(text) if found is None else found.start()


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = list(pattern.finditer(text))
    return found[-1] if found else None


def _until_closed(text: str) -> str:
    """`text` up to the brace that closes one opened before it, or all of it."""
    depth = 1
    for index, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth == 0:
            return text[:index]
    return text


def _decimal(number: re.Match[str]) -> Decimal:
    sign, digits = number[1] or "", number[2]
    whole, dot, fraction = digits.partition(".")
    if "," in whole and not _GROUPED.fullmatch(whole):  # a list such as 1,2,3: its last item
        sign, whole = "", whole.rpartition(",")[2]
    return Decimal(f"{sign}{whole.replace(',', '')}{dot}{fraction}")


def _plain(number: Decimal | None) -> str:
    """The one way to write a number: equal texts are equal Decimals. 18.00 is "18", None is ""."""
    if number is None:
        return ""
    text = format(number, "f") if number else "0"
    return text.rstrip("0").rstrip(".") if "." in text else text
