"""Repeated measurements of a request: how far they differ, and how busy other processes were."""

from collections.abc import Collection, Hashable

import numpy as np
from numpy.typing import ArrayLike

LOADED_SHARE = 0.1  # of the cores, taken by other processes
WIDE_SPREAD = 0.2  # of a median: repeats differ by as much


def spread(seconds: ArrayLike, requests: Collection[Hashable]) -> float:
    """(max - min) / median of each request's repeats; the median over all requests.

    `seconds` [n] of `requests` [n]; nan is left out. nan if nothing was measured twice.
    """
    times = np.asarray(seconds, dtype=np.float64)
    by_request: dict[Hashable, list[float]] = {}
    for request, time in zip(requests, times.tolist(), strict=True):
        if time == time:
            by_request.setdefault(request, []).append(time)
    found = [
        (max(repeats) - min(repeats)) / float(np.median(repeats))
        for repeats in by_request.values()
        if len(repeats) > 1
    ]
    return float(np.median(found)) if found else float("nan")


def others_share(shares: ArrayLike, seconds: ArrayLike) -> float:
    """Mean of the `shares` [n] of the cores that others took, weighted by `seconds` [n].

    One short measurement alone is too coarse. nan if nothing is known.
    """
    taken, lasted = (np.asarray(x, dtype=np.float64) for x in (shares, seconds))
    known = ~np.isnan(taken * lasted)
    if not lasted[known].sum() > 0:
        return float("nan")
    return float(np.average(taken[known], weights=lasted[known]))


def unsteady(
    spread_of_repeats: float | None, others: float | None, on_gpu: float | None
) -> list[str]:
    """Why measured times are not to be trusted, in words; empty if no reason is known."""
    reasons = []
    if others is not None and others >= LOADED_SHARE:
        reasons.append(f"other processes took {others:.0%} of the cores meanwhile")
    if on_gpu is not None and on_gpu > 0:
        reasons.append(f"other processes computed on the GPU meanwhile ({on_gpu:.0f})")
    if spread_of_repeats is not None and spread_of_repeats >= WIDE_SPREAD:
        reasons.append(f"repeats of the same request differ by {spread_of_repeats:.0%}")
    return reasons
