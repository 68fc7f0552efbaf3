"""Finding the parameters that turn a model's scores into probabilities: Platt's, or isotonic.

`kvx.guard.calibration` applies them. scikit-learn is not a dependency of kvx, and it would change
the cards. On 20,000 scores its isotonic probabilities differ by up to 0.07, because this line goes
through at most 200 knots; its Platt parameters differ by up to 7e-6, where the solvers stop.
"""

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
