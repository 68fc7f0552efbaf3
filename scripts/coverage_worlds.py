"""Made-up prompts of known truth for scripts/coverage_study.py: rates, pairs, curves, losses."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Clusters = NDArray[np.int64]
Pair = tuple[Floats, Floats, Clusters]  # here and full cache [n]
MOST_PER_CLUSTER = 30


@dataclass(frozen=True)
class World:
    """How prompts hang together: `size` of the clusters, `icc` within them, 0/1 or graded scores.

    `size` 0 stands for uneven clusters: 1 to 30 prompts, 5 in the mean.
    """

    name: str
    size: int
    icc: float
    graded: bool = False

    def clusters(self, n: int, rng: np.random.Generator) -> Clusters:
        """The cluster [n] of every prompt."""
        if self.size:
            return np.arange(n) // self.size
        sizes = np.minimum(rng.geometric(0.2, n), MOST_PER_CLUSTER)
        return np.repeat(np.arange(n), sizes)[:n]

    def shares(self, mean: float, n: int, rng: np.random.Generator) -> Floats:
        """A rate for each of `n` clusters: beta with this `mean`, so that prompts have the icc."""
        if self.icc == 0 or mean in (0.0, 1.0):
            return np.full(n, mean)
        scale = 1 / self.icc - 1
        return rng.beta(mean * scale, (1 - mean) * scale, n)


INDEPENDENT = World("independent", 1, 0.0)
FIVES = [World(f"5 a text, ICC {icc:g}", 5, icc) for icc in (0.1, 0.4, 0.7)]
UNEVEN = World("1–30 a text, ICC 0.3", 0, 0.3)
TWELVES = World("12 a text, ICC 0.4", 12, 0.4)
GRADED = World("graded, independent", 1, 0.0, graded=True)
GRADED_FIVES = World("graded, 5 a text, ICC 0.4", 5, 0.4, graded=True)
WORLDS = {
    w.name: w for w in (INDEPENDENT, *FIVES, UNEVEN, TWELVES, GRADED, GRADED_FIVES)
}  # fmt: skip


def scores(world: World, n: int, rate: float, rng: np.random.Generator) -> tuple[Floats, Clusters]:
    """Scores [n] whose expected value is `rate`, and their clusters."""
    clusters = world.clusters(n, rng)
    expected = world.shares(rate, n, rng)[clusters]
    return _drawn(world, expected, rng), clusters


def _drawn(world: World, expected: Floats, rng: np.random.Generator) -> Floats:
    if not world.graded:
        return (rng.random(expected.shape) < expected).astype(np.float64)
    inside = np.clip(expected, 1e-6, 1 - 1e-6)
    return rng.beta(inside, 1 - inside)  # many near 0 and 1, as token F1 has


def pairs(world: World, n: int, discordance: float, lost: float, rng: np.random.Generator) -> Pair:
    """Scores here and of the full cache [n], and their clusters; the full cache's mean is 1/2.

    A share `discordance` differs, of which a share `lost` is worse here. Both vary by cluster.
    """
    clusters = world.clusters(n, rng)
    full = _drawn(world, world.shares(0.5, n, rng)[clusters], rng)
    differs = rng.random(n) < world.shares(discordance, n, rng)[clusters]
    worse = rng.random(n) < world.shares(lost, n, rng)[clusters]
    if not world.graded:
        full = np.where(differs, worse, full).astype(np.float64)
        return np.where(differs, 1 - full, full), full, clusters
    by = rng.random(n)
    changed = np.where(worse, full * (1 - by), full + (1 - full) * by)
    return np.where(differs, changed, full), full, clusters


def true_difference(world: World, discordance: float, lost: float) -> float:
    """The expected value of here - full of `pairs`."""
    step = 0.25 if world.graded else 1.0  # graded: half of what there is to lose, 1/2 in the mean
    return discordance * (1 - 2 * lost) * step


def curve(
    world: World, n: int, rates: list[float], rng: np.random.Generator
) -> tuple[Floats, Clusters]:
    """Scores [budgets, n] of the same prompts at falling budgets, and their clusters.

    A prompt has one difficulty through all budgets, so that what is right at a budget is right at
    every budget with a higher rate. Clusters differ in difficulty by the world's icc.
    """
    clusters = world.clusters(n, rng)
    levels = np.array(rates)[:, None]
    shared = rng.random(n)[clusters]
    with_cluster = rng.random(n) < np.sqrt(world.icc)
    difficulty = np.where(with_cluster, shared, rng.random(n))
    return (difficulty < levels).astype(np.float64), clusters


def settings_of(**values: list[Any]) -> list[dict[str, Any]]:
    """Every combination, the last one changing fastest."""
    found: list[dict[str, Any]] = [{}]
    for name, options in values.items():
        found = [{**one, name: option} for one in found for option in options]
    return found
