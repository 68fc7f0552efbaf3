"""Metrics of the references that a prediction contains."""

from collections.abc import Sequence

from kvx.scoring.metrics.base import Score, best, metric


@metric(binary="one reference")
def string_match_all(prediction: str, answers: Sequence[str]) -> Score:
    """Share of the references that the prediction contains, ignoring case.

    RULER's metric of all tasks but QA (https://arxiv.org/abs/2404.06654). Blank references do not
    count.
    """
    ours, references = _lower(prediction), _non_blank(answers)
    n_found = sum(reference in ours for reference in references)
    return Score(n_found / max(1, len(references)), ours, " | ".join(references))


@metric(binary=True)
def string_match_any(prediction: str, answers: Sequence[str]) -> Score:
    """1 if the prediction contains any reference, ignoring case; RULER's metric of QA tasks."""
    return best(_lower(prediction), _non_blank(answers), _contains)


def _contains(ours: str, reference: str) -> float:
    return float(reference in ours)


def _lower(text: str) -> str:
    return text.strip().lower()


def _non_blank(answers: Sequence[str]) -> list[str]:
    # the empty string is contained in every prediction
    return [text for answer in answers if (text := _lower(answer))]
