"""Parts of scripts/coverage_study.py: means, paired differences, and families of their tests."""

import math
from collections.abc import Sequence

import numpy as np

from kvx.stats import clustered
from kvx.stats.multiplicity import holm
from scripts import coverage_worlds as worlds
from scripts.coverage_base import CONFIDENCE, LEVEL, SIZES, Ask, Part, Result, Setting
from scripts.coverage_worlds import WORLDS, settings_of


def means(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
    world, rate = WORLDS[setting["world"]], setting["rate"]
    known = covered = 0
    width = 0.0
    drawn = [worlds.scores(world, setting["n"], rate, rng) for _ in range(repeats)]
    for found in clustered.means([(v, c.tolist()) for v, c in drawn], CONFIDENCE):
        low, high = found.interval
        if not math.isnan(low):
            known += 1
            covered += low - 1e-12 <= rate <= high + 1e-12
            width += high - low
    return {"repeats": repeats, "known": known, "covered": covered, "width": _share(width, known)}


def differences(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
    world = WORLDS[setting["world"]]
    discordance, lost = setting["discordance"], setting["lost"]
    truth = worlds.true_difference(world, discordance, lost)
    known = covered = tested = rejected = 0
    width = 0.0
    drawn = [worlds.pairs(world, setting["n"], discordance, lost, rng) for _ in range(repeats)]
    for found in _tested(drawn):
        low, high = found.interval
        if not math.isnan(low):
            known += 1
            covered += low - 1e-12 <= truth <= high + 1e-12
            width += high - low
        if not math.isnan(found.p):
            tested += 1
            rejected += found.p <= LEVEL
    result = {"repeats": repeats, "known": known, "covered": covered, "width": _share(width, known)}
    role = "null" if truth == 0 else "real"
    return result | {f"tested_{role}": tested, f"rejected_{role}": rejected}


def families(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
    """Reports in which nothing differs: how many of them say that something does."""
    world = WORLDS[setting["world"]]
    said = uncorrected = 0
    for _ in range(repeats):
        points = range(setting["points"])
        drawn = [worlds.pairs(world, setting["n"], 0.2, 0.5, rng) for _ in points]
        p = [found.p for found in _tested(drawn)]
        said += bool((holm(p) <= LEVEL).any())
        uncorrected += int((np.array(p) <= LEVEL).sum())
    return {"reports": repeats, "said": said, "uncorrected": uncorrected / repeats}


def _tested(drawn: Sequence[worlds.Pair]) -> list[clustered.Difference]:
    """As `comparisons` tests many cells: together, where their clusters are the same."""
    pairs = [(here, full, clusters.tolist()) for here, full, clusters in drawn]
    return clustered.paired_differences(pairs, CONFIDENCE)


def _share(total: float, n: int) -> float:
    return total / n if n else math.nan


COVERED = Ask("95% intervals cover", "covered", "known", 0.93, 0.975, strict=False)
PARTS = [
    Part(
        "means",
        "Means",
        "`kvx.stats.clustered.means`, which `bin_stats` calls. Exact intervals of independent "
        "0/1 scores may be wider than asked, the more so the rarer one of both is.",
        settings_of(
            world=[w for w in WORLDS if not w.startswith("12")],
            n=SIZES,
            rate=[0.01, 0.1, 0.5, 0.95, 0.99],
        ),
        means,
        (COVERED,),
        ("world", "n"),
    ),
    Part(
        "differences",
        "Paired differences and their tests",
        "`kvx.stats.clustered.paired_differences`, which `comparisons` calls. `lost` is the share "
        "of the pairs that differ in which the compressed answer is worse; 0.5 is the null.",
        [
            s
            for s in settings_of(
                world=[w for w in WORLDS if not w.startswith(("12", "5 a text, ICC 0.1"))],
                n=SIZES,
                discordance=[0.0, 0.05, 0.1, 0.2, 0.4],
                lost=[0.5, 0.75, 1.0],
            )
            if s["discordance"] or s["lost"] == 0.5
        ],
        differences,
        (COVERED, Ask("tests at 5% reject the null", "rejected_null", "tested_null", 0.0, 0.06)),
        ("world", "n"),
    ),
    Part(
        "families",
        "Whole reports in which nothing differs",
        "50 points against their full cache, p corrected by Holm (`kvx.stats.multiplicity`).",
        settings_of(
            world=["independent", "5 a text, ICC 0.4", "12 a text, ICC 0.4"], points=[50],
            n=[60, 120],
        ),
        families,
        (Ask("reports that say something differs", "said", "reports", 0.0, 0.05),),
        ("world", "n"),
        repeats=200,
    ),
]  # fmt: skip
