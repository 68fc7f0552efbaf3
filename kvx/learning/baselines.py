"""Baselines that a hazard model has to beat: detectors without training."""

from collections import Counter, deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

NGRAM = 4
RECENT = 64


def repeated_ngrams(token_ids: Sequence[int]) -> NDArray[np.float32]:
    """After each token, the share of the last 64 4-grams that stood in the sequence before."""
    seen: Counter[tuple[int, ...]] = Counter()
    recent: deque[bool] = deque(maxlen=RECENT)
    tail: deque[int] = deque(maxlen=NGRAM)
    shares = np.zeros(len(token_ids), np.float32)
    for t, token in enumerate(token_ids):
        tail.append(int(token))
        if len(tail) == NGRAM:
            gram = tuple(tail)
            recent.append(seen[gram] > 0)
            seen[gram] += 1
            shares[t] = sum(recent) / RECENT
    return shares


def entropy_cusum(entropy_nats: ArrayLike, mean: float, sd: float) -> NDArray[np.float32]:
    """Upper CUSUM of one trace's entropy [tokens], in standard deviations.

    `mean` and `sd` are those of sound generations; the slack is half a standard deviation.
    Source: Page (1954), Biometrika 41, 100-115.
    """
    steps = (np.asarray(entropy_nats, np.float64) - mean) / max(sd, 1e-9) - 0.5
    total = np.concatenate([[0.0], np.cumsum(steps)])
    return (total - np.minimum.accumulate(total))[1:].astype(np.float32)
