"""Structured configuration of kvx.certify."""

from dataclasses import dataclass
from enum import Enum

from kvx.config.fields import option

SHARE = "between 0 and 1, for example 0.05"


class Loss(Enum):
    """A prompt's loss against the full cache, between 0 and 1."""

    failure = "failure"  # 1: no answer, or none in the right form, where the full cache gave one
    catastrophe = "catastrophe"  # 1: derailed where the full cache did not
    score = "score"  # how far a score is below the full cache's


class Average(Enum):
    """Of what the allowed loss is a mean, where several examples share a text (a cluster)."""

    clusters = "clusters"  # over texts: each counts once, however many examples it has
    examples = "examples"  # over examples: a text counts by their number


@dataclass
class CertifyConfig:
    """Which budgets lose at most `alpha`, with confidence 1 - `delta`."""

    loss: Loss = option(Loss.score, "what a prompt can lose against the full cache")
    metric: str | None = option(None, "of loss=score; null: the primary one")
    net: bool = option(False, "gains make up for losses: non-inferiority with margin alpha")
    average: Average = option(
        Average.clusters, "the mean over clusters (texts) or over examples (questions)"
    )
    alpha: float = option(0.05, "the mean loss that is allowed", above=0, below=1, words=SHARE)
    delta: float = option(
        0.05, "how often a certificate may be wrong", above=0, below=1, words=SHARE
    )
    per_bin: bool = option(False, "certify every length bin, all of them at once")
    press: str | None = option(None, "null: every press of the experiment, a certificate each")
    controller: str | None = option(None, "null: every controller, a certificate each")
