"""A part of scripts/coverage_study.py: is "loses less than the margin" said where it is so?"""

import math

import numpy as np

from kvx.stats.equivalence import non_inferiority
from scripts import coverage_worlds as worlds
from scripts.coverage_base import CONFIDENCE, LEVEL, Ask, Part, Result, Setting
from scripts.coverage_worlds import WORLDS, settings_of


def harmless(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
    """How often "loses less than the margin" is said where the loss is the margin, or nothing."""
    world, margin = WORLDS[setting["world"]], setting["margin"]
    discordance = setting["discordance"]
    lost = 0.5
    if setting["loss"] == "margin":
        per_pair = worlds.true_difference(world, discordance, 0.0)  # all of them won
        lost = 0.5 + margin / (2 * per_pair)
    tested = said = 0
    for _ in range(repeats):
        here, full, clusters = worlds.pairs(world, setting["n"], discordance, lost, rng)
        p = non_inferiority(here, full, clusters.tolist(), margin, CONFIDENCE).p
        tested += not math.isnan(p)
        said += p <= LEVEL
    return {f"tested_{setting['loss']}": tested, f"said_{setting['loss']}": said}


PARTS = [
    Part(
        "harmless",
        "Loses less than the margin",
        "`kvx.stats.equivalence.non_inferiority`, which `margins` calls, one-sided at 95%. Where "
        "the true loss is the margin, it may be said in 5%; where nothing is lost, it should be.",
        [
            s
            for s in settings_of(
                world=["independent", "5 a text, ICC 0.1", "5 a text, ICC 0.4",
                       "1–30 a text, ICC 0.3", "graded, independent", "graded, 5 a text, ICC 0.4"],
                n=[50, 200, 500],
                discordance=[0.1, 0.4],
                margin=[0.02, 0.1],
                loss=["margin", "none"],
            )
            if s["discordance"] * (0.25 if "graded" in s["world"] else 1) >= s["margin"]
        ],
        harmless,
        (
            Ask("said at a loss of the margin", "said_margin", "tested_margin", 0.0, 0.06),
            Ask("said at no loss", "said_none", "tested_none", 0.0, 1.0),
        ),
        ("world", "n"),
        repeats=500,
    ),
]  # fmt: skip
