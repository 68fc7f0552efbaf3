"""P-values corrected for how many hypotheses were tested."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def holm(p_values: ArrayLike) -> Floats:
    """Holm's adjusted p of each of `p_values` [m]; at or below alpha where it is rejected.

    Keeps the chance of any false rejection at most alpha, whatever the dependence. nan stays nan
    and is not counted among the hypotheses. Raises `ValueError` for values outside [0, 1].

    Source: Holm (1979), Scandinavian Journal of Statistics 6, 65-70.
    """

    def adjusted(ascending: Floats) -> Floats:
        m = len(ascending)
        steps: Floats = np.maximum.accumulate(ascending * np.arange(m, 0, -1))
        return steps

    return _of_known(p_values, adjusted)


def benjamini_hochberg(p_values: ArrayLike) -> Floats:
    """Benjamini and Hochberg's adjusted p of each of `p_values` [m].

    Keeps the expected share of false ones among the rejected at most alpha where tests are
    independent or positively dependent. nan stays nan and is not counted among the hypotheses.
    Raises `ValueError` for values outside [0, 1].

    Source: Benjamini & Hochberg (1995), Journal of the Royal Statistical Society B 57, 289-300.
    """

    def adjusted(ascending: Floats) -> Floats:
        m = len(ascending)
        steps = ascending * m / np.arange(1, m + 1)
        lowest: Floats = np.minimum.accumulate(steps[::-1])[::-1]
        return lowest

    return _of_known(p_values, adjusted)


def _of_known(p_values: ArrayLike, adjusted: Callable[[Floats], Floats]) -> Floats:
    """Apply `adjusted`, which takes ascending p-values, to those that are not nan."""
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise ValueError(f"p_values: need [m] numbers in [0, 1] or nan, not {p.shape}")
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    result = np.full(p.shape, np.nan)
    result[order] = np.minimum(adjusted(p[order]), 1.0)
    return result
