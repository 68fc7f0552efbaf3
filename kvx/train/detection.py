"""The second view: the tokens before a loop can be detected, not those before it starts.

At its onset nothing of a loop has been repeated yet. A guard that rolls back need only be earlier
than the loop detector. So an event here is the token with which `kvx.guard.loop_follower` first
reports the loop: tokens from it on do not count, the H tokens before it are positive, and models
are fitted, calibrated and given thresholds for that. Roles, folds and splits are the headline's.
"""

from dataclasses import replace

import numpy as np

from kvx.config.train import LeaveOut
from kvx.learning.evaluation import Metric
from kvx.train.judge import Judge
from kvx.train.reference import untrained

ANALYSIS = "before_detection"
DELAY = "delay"  # the name of the rows on the detector's delay
QUARTILES = {"q25": 0.25, "median": 0.5, "q75": 0.75}


def onset_name(features: str) -> str:
    """The name of the headline's model in this view, which it was not trained for."""
    return f"{features}, trained for the onset"


def without(group: LeaveOut) -> str:
    """The analysis that leaves out each member of `group` in this view."""
    return f"{ANALYSIS}_without_{group.name}"


def until_detection(judge: Judge) -> Judge | None:
    """The judge of this view; None, with the reason noted, if a loop's detection is unknown."""
    late = judge.table.until_detection()
    if np.isnan(late.data.about.onset[late.data.about.events]).any():
        judge.results.skip("before the loop can be detected: responses without token ids")
        return None
    return replace(judge, table=late)


def before_detection(judge: Judge, late: Judge) -> None:
    """Add the figures of this view, which `late` judges; `judge` is the headline's."""
    config = judge.config
    judge.add(ANALYSIS, DELAY, _delay(judge, late))
    own = judge.fitted(config.features)
    late.judge(ANALYSIS, onset_name(config.features), own, probability=False)
    for name in dict.fromkeys((config.features, *judge.ablations)):
        late.judge(ANALYSIS, name, late.fitted(name))
        late.done(f"{ANALYSIS} features={name}")
    for name, cross in untrained(late):
        late.judge(ANALYSIS, name, cross, probability=False)
    late.done(f"{ANALYSIS} baselines")


def _delay(judge: Judge, late: Judge) -> list[Metric]:
    """How many tokens after the onset the loop is reported: quartiles over events."""
    rows = judge.data.about.events & judge.data.compressed
    delay = (late.data.about.onset - judge.data.about.onset)[rows]
    clusters, n = judge.data.clusters[rows], int(rows.sum())
    return [
        Metric(f"delay_{name}", judge.resampler.quantile(delay, clusters, q), n, n, "traces")
        for name, q in QUARTILES.items()
    ]
