"""Metrics: pure functions (prediction, reference answers) -> Score, each value between 0 and 1.

Predictions are scored as they are, as LongBench does for NarrativeQA: no cut at the first line.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from kvx.errors import UserError
from kvx.scoring.instructions import parse


@dataclass(frozen=True)
class Score:
    """A metric's value and the normalised texts it compared, with the best matching reference."""

    value: float
    prediction: str
    reference: str


Metric = Callable[[str, Sequence[str]], Score]

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """LongBench's normal form: lower case, no ASCII punctuation, articles or extra spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_DROP_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> Score:
    """1 if the normal forms are equal and not empty, for any reference.

    A text of articles only keeps them, so that the choice "A" can be matched, and only by "A".
    """

    def form(text: str) -> str:
        return normalize_answer(text) or " ".join(text.lower().translate(_DROP_PUNCTUATION).split())

    return _best(form(prediction), [form(a) for a in answers], _equal)


def qa_f1(prediction: str, answers: Sequence[str]) -> Score:
    """Token-multiset F1 of the normal forms, the maximum over references; 0 if none is shared.

    LongBench's qa_f1_score (https://arxiv.org/abs/2308.14508).
    """
    return _best(normalize_answer(prediction), [normalize_answer(a) for a in answers], _token_f1)


def string_match_all(prediction: str, answers: Sequence[str]) -> Score:
    """Share of the references that the prediction contains, ignoring case.

    RULER's metric of all tasks but QA (https://arxiv.org/abs/2404.06654). Blank references do not
    count.
    """
    ours, references = _lower(prediction), _non_blank(answers)
    n_found = sum(reference in ours for reference in references)
    return Score(n_found / max(1, len(references)), ours, " | ".join(references))


def string_match_any(prediction: str, answers: Sequence[str]) -> Score:
    """1 if the prediction contains any reference, ignoring case; RULER's metric of QA tasks."""
    return _best(_lower(prediction), _non_blank(answers), _contains)


def numeric(prediction: str, answers: Sequence[str]) -> Score:
    """1 if prediction and any reference state the same number (`find_number`); for GSM8K.

    Without a number in the prediction the value is 0 and `Score.prediction` is empty.
    """
    references = [text for a in answers if (text := _plain(find_number(a)))]
    return _best(_plain(find_number(prediction)), references, _equal)


def instruction_kept(prediction: str, answers: Sequence[str]) -> Score:
    """1 if the prediction keeps the instruction, or share of them kept, of dataset=instructions.

    `answers` hold instructions as JSON (`kvx.scoring.instructions`). Raises `UserError` for any
    other text: no other dataset has such answers.
    """
    kept = []
    for answer in answers:
        instruction = parse(answer)
        if instruction is None:
            raise UserError(
                f"dataset.metrics: instruction_kept needs an instruction to check, not the answer "
                f"{answer[:60]!r}; use it with dataset=instructions"
            )
        kept.append(instruction.kept(prediction))
    return Score(sum(kept) / max(1, len(kept)), prediction.strip(), " | ".join(answers))


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "qa_f1": qa_f1,
    "string_match_all": string_match_all,
    "string_match_any": string_match_any,
    "numeric": numeric,
    "instruction_kept": instruction_kept,
}


def resolve(names: Sequence[str], field: str = "dataset.metrics") -> dict[str, Metric]:
    """The metrics by name, in the order asked.

    Raises `UserError`, which names the configuration's `field`, for a name there is none of.
    """
    for name in names:
        if name not in METRICS:
            raise UserError(f"{field}: unknown metric {name!r}; choose from {', '.join(METRICS)}")
    return {name: METRICS[name] for name in names}


def _best(ours: str, references: Sequence[str], value: Callable[[str, str], float]) -> Score:
    """The first reference with the highest value; without references the value is 0."""
    scores = (Score(value(ours, reference), ours, reference) for reference in references)
    return max(scores, key=lambda score: score.value, default=Score(0.0, ours, ""))


def _equal(ours: str, reference: str) -> float:
    return float(ours != "" and ours == reference)


def _contains(ours: str, reference: str) -> float:
    return float(reference in ours)


def _token_f1(ours: str, reference: str) -> float:
    ours_tokens, reference_tokens = ours.split(), reference.split()
    n_same = (Counter(ours_tokens) & Counter(reference_tokens)).total()
    # 2PR/(P+R) with P = same/ours and R = same/reference, in one division
    return 2 * n_same / (len(ours_tokens) + len(reference_tokens)) if n_same else 0.0


def _lower(text: str) -> str:
    return text.strip().lower()


def _non_blank(answers: Sequence[str]) -> list[str]:
    # the empty string is contained in every prediction
    return [text for answer in answers if (text := _lower(answer))]


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
# how worked examples begin, and the turns of a conversation; how their answers do
_BEGINS = r"^[ \t]*(?:\*\*|#{1,6}[ \t])?(?:"
_ENDS = r")(?:[ \t]*#?\d{1,4})?(?:\*\*)?[ \t]*[:.)]"
_QUESTION = re.compile(
    rf"{_BEGINS}question|problem|exercise|example|q|user|human{_ENDS}", re.IGNORECASE | re.MULTILINE
)
_ANSWER = re.compile(rf"{_BEGINS}answer|solution|a{_ENDS}", re.IGNORECASE | re.MULTILINE)
_BOXED = re.compile(r"\\boxed\s*\{")
_GROUPED = re.compile(r"\d{1,3}(?:,\d{2,3})*,\d{3}")  # also Indian: 1,00,000


def find_number(text: str) -> Decimal | None:
    r"""The number a text answers with, or None.

    It is the one after the last `####` (GSM8K's mark), else the last inside the last `\boxed{}`,
    else the last in the text. What follows a stated answer under a heading such as `Question:` is
    the next example that a model goes on to, and does not count. `$`, `%` and thousands separators
    are dropped; a Unicode minus is a sign. Fractions are not evaluated: `1/2` ends with the number
    2.
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
