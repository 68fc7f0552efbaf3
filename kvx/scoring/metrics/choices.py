"""Metrics of answers that are one of several given ones: a class by name, or a letter."""

import re
from collections.abc import Sequence

from kvx.errors import shown
from kvx.scoring.metrics.base import Score, best, equal, metric

# LongBench v2 asks for the first; both are its own patterns
_CHOSEN = (
    re.compile(r"The correct answer is \(([A-D])\)"),
    re.compile(r"The correct answer is ([A-D])"),
)


@metric(reads=("all_classes",))
def classification(prediction: str, answers: Sequence[str], all_classes: Sequence[str]) -> Score:
    """1 / (classes that the prediction names), if the reference is among them, else 0.

    LongBench's classification_score. A class whose name is part of the reference's does not count,
    except the one that follows such a class in `all_classes` order: LongBench drops names from the
    list that it walks, which passes over the next.
    """
    named = [name for name in all_classes if name in prediction]

    def value(_: str, reference: str) -> float:
        left, at = list(named), 0
        while at < len(left):
            if left[at] in reference and left[at] != reference:
                left.remove(left[at])
            at += 1
        return 1 / len(left) if reference in left else 0.0

    return best(" | ".join(named), answers, value)


def _has_letter(answers: Sequence[str]) -> str | None:
    if any(answer.strip() in ("A", "B", "C", "D") for answer in answers):
        return None
    return f"no letter from A to D in its reference {shown(answers[0] if answers else '')}"


@metric(binary=True, fits=_has_letter)
def multiple_choice(prediction: str, answers: Sequence[str]) -> Score:
    """1 if the answer states the reference's letter in LongBench v2's words, else 0.

    "The correct answer is (B)", or the same without brackets, anywhere, asterisks aside; the
    bracketed form counts first (https://arxiv.org/abs/2412.15204).
    """
    text = prediction.replace("*", "")
    found = next((match[1] for form in _CHOSEN if (match := form.search(text))), "")
    return best(found, [answer.strip() for answer in answers], equal)
