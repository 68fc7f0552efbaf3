"""How often curves over budgets are called what they are: simulations with known truth.

Every function draws curves of 0/1 scores and asks what `kvx.analyze` asks; `coverage_study.py`
prints them. Rates are probabilities of a right answer at each budget, the full cache first.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtr

from kvx.stats.curve_shape import step_out_of_sample
from kvx.stats.dose_response import fit
from kvx.stats.instability import Rise, rises
from kvx.stats.multiplicity import holm
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


def threshold_coverage(
    middle: float,
    scale: float,
    guess: float,
    full: float,
    budgets: Sequence[float],
    n: int,
    repeats: int,
    seed: int,
    confidence: float = 0.95,
    **data: Any,
) -> dict[str, float]:
    """Share of intervals of `b50` and `b95` that hold the truth.

    The curve is full · rise(b) / rise(1), rise = guess + (1 - guess) · logistic((log2 b - middle) /
    scale). A threshold below the lowest budget is held by an interval that begins at 0.
    """

    def rise(log_budget: ArrayLike) -> FloatArray:
        found: FloatArray = expit((np.asarray(log_budget, dtype=float) - middle) / scale)
        return guess + (1 - guess) * found

    truth = []
    for share in (0.5, 0.95):
        wanted = (share * float(rise(0.0)) - guess) / (1 - guess)
        budget = 2 ** (middle + scale * float(logit(wanted))) if wanted > 0 else 0.0
        truth.append(budget if budget >= min(budgets) else 0.0)
    rates = full * rise(np.log2(np.asarray(budgets))) / rise(0.0)
    rng, held = np.random.default_rng(seed), np.zeros(2)
    for repeat in range(repeats):
        scores, clusters = draw_scores(rates.tolist(), n, rng, **data)
        found = fit(budgets, scores, clusters.tolist(), confidence, repeat)
        held += [
            one.interval.low <= true <= one.interval.high
            for one, true in zip((found.b50, found.b95), truth, strict=True)
        ]
    return dict(zip(("b50", "b95"), (held / repeats).tolist(), strict=True))


def zones(
    budgets: Sequence[float],
    rates: Sequence[float],
    n: int,
    repeats: int,
    seed: int,
    drop: float = 0.15,
    alpha: float = 0.05,
    **data: Any,
) -> dict[str, float]:
    """Share of curves with a transition zone (a break that is a step out of sample), and `right`:
    at the largest step of `rates`.
    """
    rng, largest = np.random.default_rng(seed), int(np.argmax(-np.diff(rates)))
    found = {"zone": 0, "right": 0}
    for repeat in range(repeats):
        scores, clusters = draw_scores(rates, n, rng, **data)
        names = clusters.tolist()
        broken = first_break(curve_steps(scores, names), drop, alpha)
        if broken is None or step_out_of_sample(budgets, scores, names, repeat) != broken.above:
            continue
        found["zone"] += 1
        found["right"] += broken.above == largest
    return {name: count / repeats for name, count in found.items()}


def false_zones(
    n_points: int,
    n: int,
    cluster_size: int,
    repeats: int,
    seed: int,
    jump: float = 0.1,
    alpha: float = 0.05,
    icc: float = 0.3,
    pairing: float = 0.5,
) -> float:
    """Instability zones named per report of `n_points` points (curves of 5) without any effect.

    Scores are graded, a tenth of the requests fails at every budget, and texts have `cluster_size`
    questions.
    """
    rng, named = np.random.default_rng(seed), 0
    for _ in range(repeats):
        found: list[Rise] = []
        for _ in range(n_points // 5):
            data: dict[str, Any] = {"pairing": pairing, "cluster_size": cluster_size, "icc": icc}
            right, clusters = draw_scores([0.7] * 6, n, rng, **data)
            scores = np.clip(right * 0.6 + 0.4 * rng.random(right.shape), 0, 1)
            failed, _ = draw_scores([0.1] * 6, n, rng, **data)
            found += rises(scores, failed, clusters.tolist(), 0.15)
        corrected = holm([rise.p for rise in found])
        named += sum(
            p <= alpha and rise.change >= jump for rise, p in zip(found, corrected, strict=True)
        )
    return named / repeats
