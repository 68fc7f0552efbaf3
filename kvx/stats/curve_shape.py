"""Whether a curve over budgets falls in a step or declines smoothly, judged out of sample."""

from collections.abc import Collection, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from kvx.stats.bootstrap import cluster_sums, score_array

Floats = NDArray[np.float64]

LEAST_BUDGETS = 5  # with fewer points a slope and a step are the same to any data
FOLDS, ROUNDS = 10, 5


def step_out_of_sample(
    budgets: Sequence[float],
    scores: ArrayLike,
    clusters: Collection[Hashable],
    seed: int | tuple[int, ...] = 0,
) -> int | None:
    """Index of the budget above the step, if a step predicts held-out clusters best; else None.

    `scores` [k, n] are of the same n examples at `budgets` [k], strictly descending, in (0, 1]. A
    step has two levels and one place where they change. It has to beat, in mean squared error on
    clusters that were not fitted (10 folds, drawn 5 times), straight lines in the budget, in its
    logarithm and in its rank, and sigmoids that spread over at least two steps. nan scores are left
    out; None also with fewer than `LEAST_BUDGETS` budgets or as many clusters as folds.

    Raises `ValueError` on shapes that do not fit.
    """
    doses, table = np.asarray(budgets, dtype=np.float64), score_array(scores)
    if table.shape != (len(doses), len(clusters)):
        raise ValueError(f"scores {table.shape}: need [{len(doses)}, {len(clusters)}]")
    sums, counts = cluster_sums(table, clusters)
    if len(doses) < LEAST_BUDGETS or sums.shape[1] < FOLDS or not counts.sum(axis=1).all():
        return None
    rng = np.random.default_rng(seed)
    held_out = _held_out(sums.shape[1], rng)
    test_sums, test_counts = held_out @ sums.T, held_out @ counts.T.astype(float)
    train_counts = counts.sum(axis=1) - test_counts
    if not train_counts.all():
        return None
    train = (sums.sum(axis=1) - test_sums) / train_counts
    test = np.divide(test_sums, test_counts, out=np.zeros_like(train), where=test_counts > 0)

    def loss(models: Floats) -> float:
        fitted = _fitted(train, models)
        return float((test_counts * (test - fitted) ** 2).sum())

    steps = _steps(len(doses))
    if loss(steps) >= min(loss(models) for models in _smooth(doses)):
        return None
    means = sums.sum(axis=1) / counts.sum(axis=1)
    return int(_errors(means[None], steps)[0].argmin())


def _held_out(n_clusters: int, rng: np.random.Generator) -> Floats:
    """[FOLDS · ROUNDS, n_clusters], 1 where a cluster is held out."""
    places = np.stack([rng.permutation(n_clusters) % FOLDS for _ in range(ROUNDS)])
    inside: Floats = (places[:, None] == np.arange(FOLDS)[:, None]).astype(float)
    return inside.reshape(-1, n_clusters)


def _projection(basis: Floats) -> Floats:
    """[k, k]: least squares on the columns of `basis` [k, p]."""
    projection: Floats = basis @ np.linalg.pinv(basis)
    return projection


def _steps(k: int) -> Floats:
    """[k - 1, k, k]: two levels, the change after each budget but the last."""
    high = np.arange(k)[:, None] <= np.arange(k - 1)
    return np.stack([_projection(np.stack([h, ~h], axis=1).astype(float)) for h in high.T])


def _smooth(doses: Floats) -> list[Floats]:
    """Models [m, k, k] of each smooth kind: lines, and sigmoids in rank of any place."""
    rank = -np.arange(len(doses), dtype=float)
    lines = [_projection(np.stack([np.ones(len(doses)), x], axis=1))[None]
             for x in (doses, np.log2(doses), rank)]  # fmt: skip
    sigmoids = [
        _projection(np.stack([np.ones(len(doses)), expit((rank - middle) / scale)], axis=1))
        for middle in np.arange(rank[-1], 0.1, 0.5)
        for scale in (0.5, 0.7, 1.0, 1.5)  # 10% to 90% in 4.4 scales: two steps and more
    ]
    return [*lines, np.stack(sigmoids)]


def _errors(means: Floats, models: Floats) -> Floats:
    """Squared error [f, m] of each model on the `means` [f, k] that it is fitted to."""
    fitted = np.einsum("mij,fj->fmi", models, means)
    errors: Floats = ((fitted - means[:, None]) ** 2).sum(axis=2)
    return errors


def _fitted(means: Floats, models: Floats) -> Floats:
    """[f, k]: of each fit, the model with the least error."""
    best = _errors(means, models).argmin(axis=1)
    fitted: Floats = np.einsum("fij,fj->fi", models[best], means)
    return fitted
