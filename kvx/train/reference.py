"""Detectors that need no training, with thresholds chosen as a model's are."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kvx.learning.baselines import entropy_cusum
from kvx.learning.labels import Role
from kvx.train.crossfit import CrossFit, crossfit_fixed
from kvx.train.judge import Judge
from kvx.train.trace_data import REPEATED

NGRAM, CUSUM = "n-gram repetition", "entropy CUSUM"


def untrained(judge: Judge) -> Iterator[tuple[str, CrossFit]]:
    """Each detector's name and its scores; without token ids the n-gram detector is left out."""
    data, config = judge.data, judge.config
    repeated = np.asarray(data.traces.signals[REPEATED])
    if np.isnan(repeated).any():
        judge.results.skip(f"{NGRAM} detector: responses without token ids")
    else:
        yield NGRAM, crossfit_fixed(data, repeated, config, judge.fold)
    yield CUSUM, crossfit_fixed(data, _cusum(judge), config, judge.fold)


def _cusum(judge: Judge) -> NDArray[np.float32]:
    """Entropy CUSUM; its scale is that of the sound traces of the other folds."""
    data = judge.data
    entropy = np.asarray(data.traces.signals["entropy_nats"], np.float64)
    score = np.full(len(entropy), np.nan, np.float32)
    for k in range(judge.config.folds):
        sound = judge.table.tokens((judge.fold != k) & (data.about.role == Role.NEGATIVE))
        if not sound.any():
            continue
        mean, sd = float(entropy[sound].mean()), float(entropy[sound].std())
        for i in np.flatnonzero(judge.fold == k):
            piece = slice(data.traces.starts[i], data.traces.starts[i + 1])
            score[piece] = entropy_cusum(entropy[piece], mean, sd)
    return score
