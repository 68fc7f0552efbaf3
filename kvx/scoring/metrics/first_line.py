"""Metrics of the first line, by LongBench's rule for its few-shot tasks.

A model goes on with examples of its own after the answer. Line breaks before the answer do not
count.
"""

from collections.abc import Sequence

from kvx.scoring.metrics import choices, normalized, summaries
from kvx.scoring.metrics.base import Score, metric


def first_line(prediction: str) -> str:
    return prediction.lstrip("\n").split("\n")[0]


@metric
def qa_f1_first_line(prediction: str, answers: Sequence[str]) -> Score:
    """`qa_f1` of the first line; LongBench's for triviaqa."""
    return normalized.qa_f1(first_line(prediction), answers)


@metric(needs=("rouge",))
def rouge_l_first_line(prediction: str, answers: Sequence[str]) -> Score:
    """`rouge_l` of the first line; LongBench's for samsum."""
    return summaries.rouge_l(first_line(prediction), answers)


@metric(reads=("all_classes",))
def classification_first_line(
    prediction: str, answers: Sequence[str], all_classes: Sequence[str]
) -> Score:
    """`classification` of the first line; LongBench's for trec and lsht."""
    row = {"all_classes": all_classes}
    return choices.classification(first_line(prediction), answers, row)
