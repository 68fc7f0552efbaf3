"""Turning a model's scores into probabilities, with parameters that fit into a card."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit

MAX_KNOTS = 200


def fit_platt(score: ArrayLike, positive: ArrayLike) -> dict[str, Any]:
    """Logistic regression of `positive` [n] on a score on the logit scale [n].

    Targets are drawn in by one pseudo-count per class, so that a score that separates the classes
    does not give a certain 0 or 1. Source: Platt (1999), with the targets given there.
    """
    x, y = np.asarray(score, np.float64), np.asarray(positive, bool)
    n_positive, n_negative = int(y.sum()), int((~y).sum())
    target = np.where(y, (n_positive + 1) / (n_positive + 2), 1 / (n_negative + 2))

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = parameters[0] * x + parameters[1]
        away = expit(z) - target
        return (
            float((np.logaddexp(0, z) - target * z).mean()),
            np.array([(away * x).mean(), away.mean()]),
        )

    start = np.array([1.0, np.log((n_positive + 1) / (n_negative + 1))])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(1e-3, 100.0), (None, None)])
    return {"kind": "platt", "slope": float(found.x[0]), "intercept": float(found.x[1])}


def fit_isotonic(score: ArrayLike, positive: ArrayLike) -> dict[str, Any]:
    """The best non-decreasing probability, as at most 200 knots of a line."""
    x, y = np.asarray(score, np.float64), np.asarray(positive, np.float64)
    order = np.argsort(x, kind="stable")
    fitted = isotonic_regression(y[order]).x
    xs, first = np.unique(x[order], return_index=True)
    ys = np.add.reduceat(fitted, first) / np.diff([*first, len(fitted)])
    if len(xs) > MAX_KNOTS:
        chosen = np.unique(np.linspace(0, len(xs) - 1, MAX_KNOTS).round().astype(int))
        xs, ys = xs[chosen], ys[chosen]
    return {"kind": "isotonic", "score": xs.tolist(), "probability": ys.tolist()}


FITS = {"platt": fit_platt, "isotonic": fit_isotonic}


def probability(calibration: dict[str, Any], score: NDArray[Any]) -> NDArray[np.float32]:
    """Calibrated probabilities of scores on the logit scale. Raises `KeyError` or `ValueError` for
    parameters that are none.
    """
    if calibration["kind"] == "platt":
        p = expit(calibration["slope"] * score.astype(np.float64) + calibration["intercept"])
    elif calibration["kind"] == "isotonic":
        p = np.interp(score, calibration["score"], calibration["probability"])
    else:
        raise ValueError(f"calibration {calibration['kind']!r} is neither platt nor isotonic")
    return np.asarray(p, np.float32)
