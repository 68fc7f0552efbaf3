"""Parts of scripts/coverage_study.py: ranks of presses, and ratios of two sums."""

import math

import numpy as np

from kvx.analyze.bin_stats import Row
from kvx.analyze.equal_budgets import Measured
from kvx.analyze.leaders import Contest, ranked
from kvx.config.analyze import AnalyzeConfig
from kvx.stats.ratios import ratio_of_sums
from scripts import coverage_worlds as worlds
from scripts.coverage_base import CONFIDENCE, Ask, Part, Result, Setting
from scripts.coverage_worlds import WORLDS, Clusters, Floats, settings_of

STEPS = {"alike": [0.6] * 6, "10 points apart": [0.85, 0.75, 0.65, 0.55, 0.45, 0.35]}


def ranks(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
    """How often a range of ranks leaves out where a press belongs, and how often the best leads."""
    world, rates = WORLDS[setting["world"]], STEPS[setting["presses"]]
    wrong = leads = 0
    for _ in range(repeats):
        scores, clusters = worlds.curve(world, setting["n"], rates, rng)
        rows = ranked([_contest(scores, clusters)], AnalyzeConfig())
        wrong += any(_leaves_out(row, rates) for row in rows)
        leads += any(row["rank_high"] == 1 for row in rows)
    found = {"repeats": repeats, "wrong": wrong}
    if setting["presses"] != "alike":
        found |= {"apart": repeats, "leads": leads}
    return found


def _leaves_out(row: Row, rates: list[float]) -> bool:
    """Whether a press is placed behind one that is no better, or before one that is no worse."""
    own = rates[int(row["press"])]
    better, worse = sum(r > own for r in rates), sum(r < own for r in rates)
    return bool(row["rank_low"] > 1 + better or row["rank_high"] < len(rates) - worse)


def _contest(scores: Floats, clusters: Clusters) -> Contest:
    n = len(scores)
    members = [[Measured(str(i), str(i), 0, "fraction", 0.5, "0.5", 0.5, 1.0, 0)] for i in range(n)]
    return Contest(
        "v", "fraction", "0.5", [str(i) for i in range(n)], "m", scores, clusters,
        len(np.unique(clusters)) == len(clusters), False, 1.0, [0] * n, members, 1,
    )  # fmt: skip


def ratios(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
    """How often the interval of tokens per right answer, or of longer answers, holds the truth."""
    world, n = WORLDS[setting["world"]], setting["n"]
    known = covered = 0
    for _ in range(repeats):
        clusters = world.clusters(n, rng)
        shared = rng.standard_normal(n)[clusters] * math.sqrt(world.icc)
        tokens = np.exp(4 + 0.6 * (shared + math.sqrt(1 - world.icc) * rng.standard_normal(n)))
        mean = math.exp(4 + 0.6**2 / 2)
        if setting["ratio"] == "length inflation":
            below = tokens * np.exp(0.3 * rng.standard_normal(n))
            truth = math.exp(-(0.3**2) / 2)
        else:
            rate = float(setting["ratio"].split()[-1])
            below = (rng.random(n) < world.shares(rate, n, rng)[clusters]).astype(float)
            truth = mean / rate
        low, high = ratio_of_sums(tokens, below, clusters.tolist(), CONFIDENCE).interval
        if not math.isnan(low):
            known += 1
            covered += low <= truth <= high
    return {"repeats": repeats, "known": known, "covered": covered}


PARTS = [
    Part(
        "ranks",
        "Ranks of presses",
        "`kvx.analyze.leaders`: six presses on the same prompts. All ranges of ranks have to hold "
        "at once. *The best is told*: one press has rank 1 for certain, where neighbours lie 10 "
        "points apart.",
        settings_of(
            world=["independent", "5 a text, ICC 0.4"], n=[50, 200], presses=list(STEPS)
        ),
        ranks,
        (
            Ask("a range is wrong", "wrong", "repeats", 0.0, 0.05),
            Ask("the best is told", "leads", "apart", 0.0, 1.0),
        ),
        ("world", "n", "presses"),
        repeats=400,
    ),
    Part(
        "ratios",
        "Ratios of sums",
        "`kvx.stats.ratios.ratio_of_sums`, which `goodput` calls: tokens per right answer (the "
        "rate of right ones is given) and length inflation. Tokens are lognormal.",
        settings_of(
            world=["independent", "5 a text, ICC 0.4", "1–30 a text, ICC 0.3"],
            n=[25, 50, 100, 200],
            ratio=["per right answer, 0.1", "per right answer, 0.5", "per right answer, 0.9",
                   "length inflation"],
        ),
        ratios,
        (Ask("95% intervals cover", "covered", "known", 0.93, 0.975, strict=False),),
        ("world", "n"),
    ),
]  # fmt: skip
