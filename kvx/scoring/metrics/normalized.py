"""Metrics that compare normal forms: equal, or alike by their words."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from kvx.scoring.metrics.base import Score, best, equal, metric

_ARTICLE = re.compile(r"\b(a|an|the)\b")
_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


UNANSWERABLE = "unanswerable"


def normalize_answer(text: str) -> str:
    """LongBench's normal form: lower case, no ASCII punctuation, articles or extra spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_DROP_PUNCTUATION)).split())


@metric(binary=True)
def exact_match(prediction: str, answers: Sequence[str]) -> Score:
    """1 if the normal forms are equal and not empty, for any reference.

    A text of articles only keeps them: the choice "A" is matched by "A" alone.
    """

    def form(text: str) -> str:
        return normalize_answer(text) or " ".join(text.lower().translate(_DROP_PUNCTUATION).split())

    return best(form(prediction), [form(a) for a in answers], equal)


@metric
def qa_f1(prediction: str, answers: Sequence[str]) -> Score:
    """Token-multiset F1 of the normal forms, the maximum over references; 0 if none is shared.

    LongBench's qa_f1_score (https://arxiv.org/abs/2308.14508).
    """
    return best(normalize_answer(prediction), [normalize_answer(a) for a in answers], token_f1)


@metric
def squad_f1(prediction: str, answers: Sequence[str]) -> Score:
    """`qa_f1`, but a question without an answer is right or wrong as a whole.

    SQuAD 2's F1 (https://arxiv.org/abs/1806.03822), where the text "unanswerable" stands for its
    empty answer: "unanswerable, I think" is wrong.
    """
    if any(normalize_answer(answer) == UNANSWERABLE for answer in answers):
        return best(normalize_answer(prediction), [normalize_answer(a) for a in answers], equal)
    return best(normalize_answer(prediction), [normalize_answer(a) for a in answers], token_f1)


def token_f1(ours: str, reference: str) -> float:
    ours_tokens, reference_tokens = ours.split(), reference.split()
    n_same = (Counter(ours_tokens) & Counter(reference_tokens)).total()
    # 2PR/(P+R) with P = same/ours and R = same/reference, in one division
    return 2 * n_same / (len(ours_tokens) + len(reference_tokens)) if n_same else 0.0
