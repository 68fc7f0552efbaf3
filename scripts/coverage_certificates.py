"""A part of scripts/coverage_study.py: are certificates kept, and how often is there one?"""

import math

import numpy as np
from numpy.typing import NDArray

from kvx.stats.betting import betting_p, fixed_order
from kvx.stats.risk_control import BETTING, BOUNDED, cluster_means, risk_test
from scripts import coverage_worlds as worlds
from scripts.coverage_base import LEVEL, Ask, Part, Result, Setting
from scripts.coverage_worlds import WORLDS, settings_of


def certificates(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
    """Certified by the test that kvx.certify chooses, by its older bounds and by published bets."""
    world, n, alpha = WORLDS[setting["world"]], setting["n"], setting["alpha"]
    risk = alpha if setting["risk"] == "alpha" else setting["risk"]
    batch = np.array([_losses(world, n, risk, setting["net"], rng) for _ in range(repeats)])
    binary = world.size == 1 and not world.graded
    test = risk_test(n, binary, setting["net"], alpha, LEVEL)
    if test is BETTING:  # all at once
        p = betting_p(batch[:, fixed_order(n)], alpha, LEVEL)
    else:
        p = np.array([test.p_value(losses, alpha, LEVEL) for losses in batch])
    role = "broken" if risk >= alpha else "power"
    certified = {"kvx": p, "published": published_bets(batch, alpha, LEVEL)}
    if not setting["net"]:
        bounds = [BOUNDED.p_value(losses, alpha, LEVEL) for losses in batch]
        certified["bounds"] = np.array(bounds)
    counts = {f"{role}_{name}": int((p <= LEVEL).sum()) for name, p in certified.items()}
    return {"repeats": repeats, **counts}


def _losses(
    world: worlds.World, n: int, risk: float, net: bool, rng: np.random.Generator
) -> NDArray[np.float64]:
    """One loss for each of `n` texts: the mean of its prompts'; net: losses less as many gains."""
    prompts = n * max(world.size, 1)
    values, clusters = worlds.scores(world, prompts, risk, rng)
    if net:  # as many get worse as better, and `risk` more get worse
        flips = rng.random(prompts)
        values = np.where(flips < 0.05 + risk, 1.0, np.where(flips < 0.10 + risk, -1.0, 0.0))
    return cluster_means(values, clusters.tolist())


def published_bets(losses: NDArray[np.float64], alpha: float, level: float) -> NDArray[np.float64]:
    """P-values [r] of losses [r, n] by the predictable bets of Waudby-Smith & Ramdas (2024).

    Truncated at half of the largest bet, as they suggest; gains are brought to [0, 1] first.
    """
    x, mean = losses, alpha
    if (x < 0).any():
        x, mean = (x + 1) / 2, (alpha + 1) / 2
    n, target = x.shape[1], -math.log(level)
    capital, best = np.zeros(len(x)), np.zeros(len(x))
    total, squares = np.full(len(x), 0.5), np.full(len(x), 0.25)
    for i in range(n):
        bet = np.minimum(np.sqrt(2 * target / (n * squares / (i + 1))), 0.5 / (1 - mean))
        capital += np.log1p(bet * (mean - x[:, i]))
        np.maximum(best, capital, out=best)
        total += x[:, i]
        squares += (x[:, i] - total / (i + 2)) ** 2
    found: NDArray[np.float64] = np.exp(-best)
    return found


def _at_alpha(setting: Setting) -> bool:
    return bool(setting["risk"] == "alpha")


def _below_alpha(setting: Setting) -> bool:
    return not _at_alpha(setting)


def _gross(setting: Setting) -> bool:
    return not _at_alpha(setting) and not setting["net"]


PARTS = [
    Part(
        "certificates",
        "Certificates",
        "The test that `kvx certify` chooses (`kvx.stats.risk_control.risk_test`), beside "
        "Hoeffding–Bentkus, which it took for all clustered and graded losses before, and the "
        "bets of Waudby-Smith & Ramdas (2024) as published. n counts texts; risk `alpha` is the "
        "largest that breaks no promise. Net: 5% of the prompts get better, 5% and the risk worse.",
        settings_of(
            world=["independent", "5 a text, ICC 0.1", "5 a text, ICC 0.4", "graded, independent"],
            net=[False], alpha=[0.05], n=[60, 100, 200, 500], risk=[0.01, 0.025, "alpha"],
        )
        + settings_of(
            world=["5 a text, ICC 0.4"], net=[False], alpha=[0.1], n=[100, 200],
            risk=[0.02, 0.05, "alpha"],
        )
        + settings_of(
            world=["independent"], net=[True], alpha=[0.05], n=[100, 200, 500],
            risk=[0.0, 0.01, "alpha"],
        ),
        certificates,
        (
            Ask("broken (kvx)", "broken_kvx", "repeats", 0.0, 0.05, _at_alpha),
            Ask("certified (kvx)", "power_kvx", "repeats", 0.0, 1.0, _below_alpha),
            Ask("by Hoeffding–Bentkus", "power_bounds", "repeats", 0.0, 1.0, _gross),
            Ask("by published bets", "power_published", "repeats", 0.0, 1.0, _below_alpha),
        ),
        ("world", "net", "alpha", "n", "risk"),
        repeats=2000,
    ),
]  # fmt: skip
