"""ROUGE-L of summaries, as LongBench measures it."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kvx.scoring.metrics.base import Score, best, metric


@metric(needs=("rouge",))
def rouge_l(prediction: str, answers: Sequence[str]) -> Score:
    """F of summary-level ROUGE-L (https://aclanthology.org/W04-1013), the maximum over references.

    LongBench's rouge_score, by the same package `rouge` 1.0.1. Sentences end at a full stop, words
    are what spaces separate, in their case and with punctuation, and each distinct word counts
    once: an answer that repeats itself scores as its first round. 0 for an empty text.
    """
    return best(prediction, answers, rouge_l_f)


def rouge_l_f(prediction: str, reference: str) -> float:
    """ROUGE-L of two texts of words separated by spaces.

    The package recurses word by word. LongBench scores 0 where that passes Python's limit; here
    the limit is raised.
    """
    from rouge import Rouge  # of the extra longbench

    n_words = prediction.count(" ") + reference.count(" ")
    n_words += sum(text.count("\n") + text.count("\t") for text in (prediction, reference))
    with _depth(n_words + 1000):
        try:
            scores = Rouge(metrics=["rouge-l"]).get_scores([prediction], [reference], avg=True)
        except ValueError:  # one of the texts is empty
            return 0.0
    return float(scores["rouge-l"]["f"])


@contextmanager
def _depth(n_frames: int) -> Iterator[None]:
    """Python's limit of nested calls is at least `n_frames` higher inside."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + n_frames)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
