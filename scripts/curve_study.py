"""How often curves over budgets are called what they are: simulations with known truth.

Every function draws curves of 0/1 scores and asks what `kvx.analyze` asks; `coverage_study.py`
prints them. Rates are probabilities of a right answer at each budget, the full cache first.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from kvx.stats.transition import TOLERANCE, curve_steps, first_break

FloatArray = NDArray[np.float64]


def draw_scores(
    rates: Sequence[float],
    n: int,
    rng: np.random.Generator,
    pairing: float = 0.5,
    cluster_size: int = 1,
    icc: float = 0.0,
) -> tuple[FloatArray, NDArray[np.intp]]:
    """0/1 scores [k, n] with mean `rates` [k] at each budget, and the clusters [n].

    An example's scores correlate over budgets through a latent normal: `pairing` 0 draws every
    budget anew, 1 gives every example one budget at which it is lost. Within a cluster of
    `cluster_size` examples the latents correlate by `icc`.
    """
    clusters = np.arange(n) // cluster_size
    shared = rng.standard_normal(clusters[-1] + 1)[clusters]
    latent = np.sqrt(icc) * shared + np.sqrt(1 - icc) * rng.standard_normal(n)
    of_clusters = rng.standard_normal((len(rates), clusters[-1] + 1))[:, clusters]
    noise = np.sqrt(icc) * of_clusters + np.sqrt(1 - icc) * rng.standard_normal((len(rates), n))
    z = np.sqrt(pairing) * latent + np.sqrt(1 - pairing) * noise
    return (ndtr(z) < np.asarray(rates)[:, None]).astype(np.float64), clusters


def breaks(
    rates: Sequence[float],
    n: int,
    repeats: int,
    seed: int,
    drop: float = 0.15,
    alpha: float = 0.05,
    **data: Any,
) -> dict[str, float]:
    """Share of curves with a break: `tested`, by the `classic` rule, and tested at the `largest`
    step of `rates`.
    """
    rng = np.random.default_rng(seed)
    largest = int(np.argmax(-np.diff(rates)))
    found = {"tested": 0, "classic": 0, "largest": 0}
    for _ in range(repeats):
        scores, clusters = draw_scores(rates, n, rng, **data)
        steps = curve_steps(scores, clusters.tolist())
        step = first_break(steps, drop, alpha)
        found["tested"] += step is not None
        found["largest"] += step is not None and step.above == largest
        found["classic"] += any(s.drop >= drop - TOLERANCE for s in steps)
    return {name: count / repeats for name, count in found.items()}
