"""Does the loss depend on the length? Paired differences whose bins are shuffled."""

from collections.abc import Collection, Hashable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc

from kvx.stats.bootstrap import cluster_codes, score_array

Floats = NDArray[np.float64]

N_SHUFFLES = 1999
MOST_UNITS = 800  # beyond, the chi-squared approximation is as good
LEAST_UNITS = 8
ROUNDING = 1e-5  # of sums in single precision, so that equal shuffles count as equal


def interaction_p(
    differences: ArrayLike, bins: ArrayLike, clusters: Collection[Hashable], seed: int
) -> float:
    """P that the mean of `differences` [n] is the same in all `bins` [n]; nan ones are left out.

    Clusters are moved between bins as a whole, `N_SHUFFLES` times; where clusters have rows in
    several bins, each keeps its own set of bins and only these are shuffled. The statistic is the
    sum of squares between bins. With more than `MOST_UNITS` to move it is compared with the
    chi-squared distribution. nan with fewer than two bins or `LEAST_UNITS` to move; 1.0 where all
    differences are equal. Raises `ValueError` on lengths that differ.

    Source: Good (2005), Permutation, Parametric and Bootstrap Tests of Hypotheses, chapter 5.
    """
    apart, labels = score_array(differences), np.asarray(bins)
    if not len(apart) == len(labels) == len(clusters):
        raise ValueError(f"differences {apart.shape}, bins {labels.shape}: must be of one length")
    known = ~np.isnan(apart)
    codes, _ = cluster_codes(clusters)
    apart, labels, codes = apart[known], labels[known], codes[known]
    names, bin_codes = np.unique(labels, return_inverse=True)
    units, first, unit = np.unique(
        codes * len(names) + bin_codes, return_index=True, return_inverse=True
    )
    if len(names) < 2 or len(units) < LEAST_UNITS:
        return float("nan")
    if apart.min() == apart.max():
        return 1.0
    sums, counts = np.bincount(unit, weights=apart), np.bincount(unit).astype(np.float64)
    # centred: moving a large cluster must not look like a difference
    sums = sums - sums.sum() / counts.sum() * counts
    of_unit, of_cluster = bin_codes[first], codes[first]
    spans = len(np.unique(of_cluster)) < len(units)
    blocks = np.unique(of_cluster, return_inverse=True)[1] if spans else np.zeros_like(of_unit)
    if len(units) > MOST_UNITS:
        return _chi_squared(sums, counts, of_unit, blocks)
    shuffled = _shuffles(of_unit.tobytes(), blocks.tobytes(), of_unit.dtype.str, seed)
    moved = np.stack([sums, counts], axis=1).astype(np.float32)
    between = np.zeros(1 + N_SHUFFLES)
    for there in shuffled:
        total, size = (there @ moved).T.astype(np.float64)
        between += total**2 / np.maximum(size, 1e-12)
    observed = between[0]  # the first is not shuffled
    return float((between >= observed * (1 - ROUNDING)).mean())


@lru_cache(maxsize=2)
def _shuffles(bins: bytes, blocks: bytes, dtype: str, seed: int) -> list[NDArray[np.float32]]:
    """For each bin which units are in it, [1 + N_SHUFFLES, units], shuffled within blocks.

    The first is as it is. Points of one manifest share them.
    """
    own, block = np.frombuffer(bins, dtype), np.frombuffer(blocks, dtype)
    rng = np.random.default_rng(seed)
    by_block = np.argsort(block, kind="stable")
    keys = rng.random((N_SHUFFLES, len(own))) + block
    order = np.argsort(keys, axis=1)
    found = np.empty((1 + N_SHUFFLES, len(own)), np.int8)
    found[0] = own
    found[1:, by_block] = own[order]
    return [(found == code).astype(np.float32) for code in range(int(own.max()) + 1)]


def _chi_squared(
    sums: Floats, counts: Floats, of_unit: NDArray[np.intp], blocks: NDArray[np.intp]
) -> float:
    """Of sums between bins in units of the spread within blocks."""
    n_blocks = int(blocks.max()) + 1
    in_block = np.bincount(blocks, minlength=n_blocks)
    means = np.bincount(blocks, weights=sums) / np.maximum(in_block, 1)
    inside = sums - means[blocks]
    freedom = len(sums) - n_blocks
    spread = float(inside @ inside) / max(freedom, 1) / float(counts.mean())
    totals, sizes = np.bincount(of_unit, weights=inside), np.bincount(of_unit, weights=counts)
    n_bins = int(np.count_nonzero(sizes))
    between = float((totals[sizes > 0] ** 2 / sizes[sizes > 0]).sum())
    return float(chdtrc(n_bins - 1, between / spread)) if spread > 0 else 1.0
