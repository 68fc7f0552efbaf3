"""LongBench's metric of a completed line of code."""

from collections.abc import Sequence
from difflib import SequenceMatcher

from kvx.scoring.metrics.base import Score, best, metric

_NO_CODE = ("`", "#", "//")  # fences of Markdown and comments


@metric
def code_similarity(prediction: str, answers: Sequence[str]) -> Score:
    """Similarity of the prediction's first line of code to a reference, in steps of 0.01.

    LongBench's code_sim_score: the first line without a backtick, "#" or "//", empty or not; line
    breaks before the first line do not count. LongBench calls fuzzywuzzy, which is
    `difflib.SequenceMatcher` where python-Levenshtein is not installed, and LongBench's
    requirements do not name that. With it the values are others.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in _NO_CODE)), "")
    return best(line, answers, _similarity)


def _similarity(line: str, reference: str) -> float:
    return round(100 * SequenceMatcher(None, line, reference).ratio()) / 100
