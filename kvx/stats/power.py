"""What paired comparisons of a given size can find, and how many pairs a margin needs.

Normal approximations for right/wrong pairs (Connor 1987, Biometrics 43, 207-211, with the variance
under no difference), which need no scipy: the plan of a run prints them.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

POWER = 0.8


def detectable_difference(
    n_pairs: float, discordance: float, confidence: float = 0.95, power: float = POWER
) -> float:
    """The smallest difference of two means over `n_pairs` independent pairs that a two-sided test
    at `confidence` finds with probability `power`.

    `discordance` is the share of pairs in which one of the two is right and the other wrong; where
    the result is above it, no such difference can occur at that discordance, let alone be found.
    Raises `ValueError` for no pairs or shares outside (0, 1).
    """
    _check(discordance=discordance, confidence=confidence, power=power)
    if n_pairs <= 0:
        raise ValueError(f"n_pairs={n_pairs}: must be above 0")
    reach = _z((1 + confidence) / 2) + _z(power)
    return reach * math.sqrt(discordance / n_pairs)


def pairs_for_margin(
    margin: float, discordance: float, confidence: float = 0.95, power: float = POWER
) -> int:
    """Independent pairs for "loses at most `margin`" with probability `power`, if nothing is lost.

    One-sided at `confidence`. Raises `ValueError` for shares outside (0, 1).
    """
    _check(margin=margin, discordance=discordance, confidence=confidence, power=power)
    return math.ceil((_z(confidence) + _z(power)) ** 2 * discordance / margin**2)


def margin_within_reach(
    n_pairs: float, discordance: float, confidence: float = 0.95, power: float = POWER
) -> float:
    """The smallest margin for which `n_pairs` suffice; the inverse of `pairs_for_margin`."""
    _check(discordance=discordance, confidence=confidence, power=power)
    if n_pairs <= 0:
        raise ValueError(f"n_pairs={n_pairs}: must be above 0")
    return (_z(confidence) + _z(power)) * math.sqrt(discordance / n_pairs)


def design_effect(sizes: Sequence[int], correlation: float) -> float:
    """How many times more pairs clusters of `sizes` need than independent ones would.

    `correlation` is that of two pairs of a cluster; 1 + (mean size, weighted by size, - 1) times
    it (Kish 1965). Raises `ValueError` without a pair or for a correlation outside [0, 1].
    """
    if not 0 <= correlation <= 1:
        raise ValueError(f"correlation={correlation}: must lie between 0 and 1")
    total = sum(sizes)
    if total <= 0:
        raise ValueError("sizes: need at least one pair")
    return 1 + (sum(size**2 for size in sizes) / total - 1) * correlation


def _z(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def _check(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 < share < 1:
            raise ValueError(f"{name}={share}: must lie between 0 and 1")
