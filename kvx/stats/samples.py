"""Several samples of each prompt: how much varies between prompts and between samples."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Components:
    """Variance of a score split in two, in its squared unit; `between` prompts and `within` them.

    `alike` is the share of the variance that lies between prompts (ICC(1)); nan without variance.
    """

    between: float
    within: float
    alike: float


def variance_components(scores: ArrayLike) -> Components:
    """Of `scores` [prompts, samples] without nan, by one-way random-effects analysis of variance.

    The part between prompts is (MSB - MSW) / samples, at least 0. nan with fewer than two prompts
    or samples. Raises `ValueError` for another shape or nan.

    Source: Searle, Casella & McCulloch (1992), Variance Components, chapter 3.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or np.isnan(values).any():
        raise ValueError(f"scores {values.shape}: need [prompts, samples] without nan")
    prompts, samples = values.shape
    if prompts < 2 or samples < 2:
        return Components(math.nan, math.nan, math.nan)
    within = float(values.var(axis=1, ddof=1).mean())
    between = max(0.0, float(values.mean(axis=1).var(ddof=1)) - within / samples)
    total = between + within
    return Components(between, within, between / total if total > 0 else math.nan)


def pass_at_k(right: ArrayLike, samples: int, k: int) -> NDArray[np.float64]:
    """Of each prompt with `right` [prompts] of `samples` right: the chance that one of `k` is.

    The unbiased estimate 1 - C(samples - right, k) / C(samples, k). Raises `ValueError` unless
    1 <= k <= samples and 0 <= right <= samples.

    Source: Chen et al. (2021), Evaluating Large Language Models Trained on Code, equation 1.
    """
    counts = np.asarray(right)
    if not 1 <= k <= samples:
        raise ValueError(f"k={k}: must lie between 1 and the number of samples, {samples}")
    if (counts < 0).any() or (counts > samples).any() or (counts != np.rint(counts)).any():
        raise ValueError(f"right: must be whole numbers between 0 and {samples}")
    total = math.comb(samples, k)
    missed = [math.comb(samples - int(c), k) / total for c in counts.tolist()]
    return 1 - np.array(missed, dtype=np.float64)


def noise_reach(differences: ArrayLike, codes: ArrayLike, z: float) -> float:
    """How far the mean of pairs that differ like `differences` [n] moves by chance.

    z standard deviations of the mean when each cluster's sum (`codes` [n] number them) is as likely
    with either sign, or the mean that was seen if that is farther. 0 where nothing differs; nan
    without a pair.
    """
    apart = np.asarray(differences, dtype=np.float64)
    if not apart.size:
        return math.nan
    _, groups = np.unique(np.asarray(codes), return_inverse=True)
    sums = np.bincount(groups, apart)
    return max(z * math.sqrt(float(sums @ sums)), abs(float(sums.sum()))) / len(apart)
