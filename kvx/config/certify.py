"""Structured configuration of kvx.certify."""

from dataclasses import dataclass
from enum import Enum

from kvx.config.ranges import within

SHARE = "between 0 and 1, for example 0.05"


class Loss(Enum):
    """What a prompt loses against its full-cache twin, between 0 and 1."""

    failure = "failure"  # 1: no answer, or none in the right form, where the full cache gave one
    catastrophe = "catastrophe"  # 1: derailed where the full cache did not
    score = "score"  # how far a score is below the full cache's


@dataclass
class CertifyConfig:
    """Which budgets lose at most `alpha`, with confidence 1 - `delta`.

    `metric` null: the primary one (only for `loss=score`). `press` and `controller` null: all.
    """

    loss: Loss = Loss.score
    metric: str | None = None
    alpha: float = within(0.05, above=0, below=1, words=SHARE)
    delta: float = within(0.05, above=0, below=1, words=SHARE)
    per_bin: bool = False
    press: str | None = None
    controller: str | None = None
