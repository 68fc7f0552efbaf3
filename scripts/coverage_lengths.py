"""Parts of scripts/coverage_study.py: does the loss depend on the length, and how does it shift?"""

import math

import numpy as np
from numpy.typing import NDArray

from kvx.stats.interaction import interaction_p
from kvx.stats.length_effect import shift_per_doubling
from scripts.coverage_base import CONFIDENCE, LEVEL, Ask, Part, Result, Setting
from scripts.coverage_worlds import settings_of

BINS = 3
ICC = 0.4  # of the questions on one text at one length
LOSS, MORE = 0.15, 0.3  # share of answers that are lost, and how many more at one length
BUDGETS = [1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1]
LENGTHS = [1000, 2000, 4000]
MIDDLE, WIDTH = 0.35, 0.4  # of the curve at the middle length; WIDTH in log2 units


def interactions(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
    """How often the loss is said to depend on the length, where it does not and where it does."""
    texts, questions = setting["texts"], setting["questions"]
    differs = setting["loss"] != "alike"
    if setting["each text"] == "at every length":
        text, bins = np.repeat(np.arange(texts), BINS), np.tile(np.arange(BINS), texts)
    else:
        text, bins = np.arange(texts), np.arange(texts) % BINS
    expected = np.where(differs & (bins == BINS - 1), LOSS + MORE, LOSS)
    scale = 1 / ICC - 1
    rows_text, rows_bin = np.repeat(text, questions), np.repeat(bins, questions)
    tested = said = 0
    for repeat in range(repeats):
        rate = rng.beta(expected * scale, (1 - expected) * scale)
        apart = -(rng.random(len(rows_text)) < np.repeat(rate, questions)).astype(float)
        p = interaction_p(apart, rows_bin, rows_text.tolist(), repeat)
        tested += not math.isnan(p)
        said += p <= LEVEL
    role = "differs" if differs else "alike"
    return {f"tested_{role}": tested, f"said_{role}": said}


def shifts(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
    """How often the interval of the shift holds it, and how often a shift is said to be there."""
    n, factor = setting["n per length"], setting["factor"]
    lengths = np.repeat(LENGTHS, n)
    rates = np.stack([_rates(math.log2(factor) * (i - 1)) for i in range(len(LENGTHS))], axis=1)
    size = setting["questions"]
    texts = np.arange(len(lengths)) // size
    known = covered = rejected = 0
    for _ in range(repeats):
        shared, own = rng.random(len(lengths))[texts], rng.random(len(lengths))
        hard = np.where(rng.random(len(lengths)) < math.sqrt(ICC), shared, own)
        difficulty = hard if size > 1 else own
        scores = (difficulty < np.repeat(rates, n, axis=1)).astype(float)
        found = shift_per_doubling(BUDGETS, scores, lengths, texts.tolist(), CONFIDENCE)
        if not math.isnan(found.factor):
            known += 1
            covered += found.interval.low <= factor <= found.interval.high
            rejected += found.p <= LEVEL
    counts = {"repeats": repeats, "known": known, "covered": covered}
    role = "none" if factor == 1 else "some"
    return {**counts, f"tested_{role}": known, f"said_{role}": rejected}


def _rates(shift: float) -> NDArray[np.float64]:
    """Rates [budgets] of a logistic curve whose midpoint is `shift` doublings higher."""
    x = np.log2(BUDGETS)
    rise = 0.05 + 0.95 / (1 + np.exp(-(x - math.log2(MIDDLE) - shift) / WIDTH))
    full = 0.05 + 0.95 / (1 + math.exp((math.log2(MIDDLE) + shift) / WIDTH))
    rates: NDArray[np.float64] = 0.95 * rise / full
    return rates


PARTS = [
    Part(
        "interactions",
        "Press × length",
        "`kvx.stats.interaction.interaction_p`, which `comparisons` and `dose_response` call. Of "
        "three lengths one loses 30 points more, or none; questions on one text at one length have "
        "an ICC of 0.4. Texts are met at every length, as needles in one speech are, or at one.",
        settings_of(
            **{"each text": ["at every length", "at one length"]}, texts=[24, 60, 150],
            questions=[1, 5], loss=["alike", "30 points more at one length"],
        ),
        interactions,
        (
            Ask("said where lengths are alike", "said_alike", "tested_alike", 0.0, 0.06),
            Ask("said where they are not", "said_differs", "tested_differs", 0.0, 1.0),
        ),
        ("each text", "texts", "questions"),
    ),
    Part(
        "shifts",
        "Shift per doubling of the length",
        "`kvx.stats.length_effect.shift_per_doubling`: by what factor the needed budget grows with "
        "each doubling, from three lengths and eight budgets. It answers where a budget lies "
        "inside the fall.",
        settings_of(questions=[1, 5], **{"n per length": [20, 50, 120]}, factor=[1.0, 1.4]),
        shifts,
        (
            Ask("95% intervals cover", "covered", "known", 0.93, 0.975, strict=False),
            Ask("a shift said where there is none", "said_none", "tested_none", 0.0, 0.06),
            Ask("said at a factor of 1.4", "said_some", "tested_some", 0.0, 1.0),
        ),
        ("questions", "n per length"),
        repeats=400,
    ),
]  # fmt: skip
