"""Turns a model's scores into probabilities, with the parameters of its card.

`kvx.learning.calibrating` finds them.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit


def probability(calibration: dict[str, Any], score: NDArray[Any]) -> NDArray[np.float32]:
    """Calibrated probabilities of scores on the logit scale. Raises `KeyError` or `ValueError` for
    invalid parameters.
    """
    if calibration["kind"] == "platt":
        p = expit(calibration["slope"] * score.astype(np.float64) + calibration["intercept"])
    elif calibration["kind"] == "isotonic":
        p = np.interp(score, calibration["score"], calibration["probability"])
    else:
        raise ValueError(f"calibration {calibration['kind']!r} is neither platt nor isotonic")
    return np.asarray(p, np.float32)
