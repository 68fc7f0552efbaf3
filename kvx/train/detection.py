"""The second view: the tokens before a loop can be detected, not those before it starts.

At its onset nothing has been repeated yet. A guard that rolls back need not be that early, only
earlier than the loop detector. Here an event is the token with which `kvx.guard.loop_follower`
first reports the loop: tokens from it on do not count, those up to H before it are positive, and
models are fitted, calibrated and given thresholds for that. Roles, folds and splits are the
headline's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from kvx.config.train import LeaveOut
from kvx.guard.features import names_of
from kvx.learning.evaluation import Metric
from kvx.train.crossfit import CrossFit, crossfit
from kvx.train.judge import Judge
from kvx.train.reference import untrained

ANALYSIS = "before_detection"
DELAY = "delay"  # what the delay of the detector is filed under
QUARTILES = {"q25": 0.25, "median": 0.5, "q75": 0.75}


def onset_name(features: str) -> str:
    """What the headline's model is called where it is judged on what it was not trained for."""
    return f"{features}, trained for the onset"


def without(group: LeaveOut) -> str:
    """What leaving out each member of `group` is filed under in this view."""
    return f"{ANALYSIS}_without_{group.name}"


def until_detection(judge: Judge) -> Judge | None:
    """The judge of this view; None, with the reason said, if some loop's detection is not known."""
    data = judge.data.until_detection()
    if np.isnan(data.about.onset[data.about.events]).any():
        judge.results.skip("before the loop can be detected: responses without token ids")
        return None
    return replace(judge, table=replace(judge.table, data=data))


def before_detection(
    judge: Judge, late: Judge, own: CrossFit, presses: Sequence[str]
) -> Iterator[CrossFit | str]:
    """The figures of this view by `late`; `own` is the headline's model, of `judge`.

    Yields what is done, and the scores of the model of `train.features`.
    """
    config = judge.config
    n_prompts = len(np.unique(judge.data.clusters))
    judge.results.add(ANALYSIS, DELAY, _delay(judge, late), n_prompts)
    late.judge(ANALYSIS, onset_name(config.features), own, probability=False)
    for name in dict.fromkeys((config.features, *judge.ablations)):
        names = names_of(name, presses)
        cross = crossfit(late.table, names, config.horizon, config, late.fold)
        late.judge(ANALYSIS, name, cross)
        yield cross if name == config.features else f"{ANALYSIS} features={name}"
    for name, cross in untrained(late):
        late.judge(ANALYSIS, name, cross, probability=False)
    yield f"{ANALYSIS} baselines"


def _delay(judge: Judge, late: Judge) -> list[Metric]:
    """How many tokens after the onset the loop is reported: quartiles over events."""
    rows = judge.data.about.events & judge.data.compressed
    delay = (late.data.about.onset - judge.data.about.onset)[rows]
    clusters, n = judge.data.clusters[rows], int(rows.sum())
    return [
        Metric(f"delay_{name}", judge.resampler.quantile(delay, clusters, q), n, n, "traces")
        for name, q in QUARTILES.items()
    ]
