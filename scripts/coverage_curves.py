"""Parts of scripts/coverage_study.py: where curves over budgets break, and which budget halves."""

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq

from kvx.config.analyze import AnalyzeConfig
from kvx.stats.curve_shape import step_out_of_sample
from kvx.stats.dose_response import fit
from kvx.stats.transition import curve_steps, first_break
from scripts import coverage_worlds as worlds
from scripts.coverage_base import CONFIDENCE, LEVEL, Ask, Part, Result, Setting
from scripts.coverage_worlds import WORLDS, settings_of

BUDGETS = [1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1]
DROP = AnalyzeConfig().transition_drop
SHAPES = {
    "flat": [0.6] * 8,
    "5 points a step": [0.9 - 0.05 * i for i in range(8)],
    "8 points a step": [0.9 - 0.08 * i for i in range(8)],
    "cliff of 30 points": [0.8] * 4 + [0.5] * 4,
    "cliff at the first step": [0.8] + [0.5] * 7,
    "cliff at the last step": [0.8] * 7 + [0.5],
}


def breaks(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
    """How often a break is said, that it is a step rather than a slope, and both: a zone."""
    world, shape = WORLDS[setting["world"]], setting["shape"]
    said = stepped = zones = 0
    cliff = int(np.argmin(np.diff(SHAPES[shape]))) if "cliff" in shape else None
    for _ in range(repeats):
        scores, clusters = worlds.curve(world, setting["n"], SHAPES[shape], rng)
        ids = clusters.tolist()
        found = first_break(curve_steps(scores, ids), DROP, LEVEL)
        above = step_out_of_sample(BUDGETS, scores, ids)
        broken = found is not None and cliff in (None, found.above)
        step = above is not None and cliff in (None, above)
        said, stepped, zones = said + broken, stepped + step, zones + (broken and step)
    role = "none" if cliff is None else "cliff"
    counts = {"said": said, "stepped": stepped, "zones": zones}
    return {"repeats": repeats, **{f"{name}_{role}": n for name, n in counts.items()}}


def halves(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
    """How often the interval of b50 holds the budget at which half of the score is left."""
    world, middle, width = WORLDS[setting["world"]], setting["middle"], setting["width"]
    rate = _CURVES[setting["curve"]]
    rates = [rate(b, middle, width) for b in BUDGETS]
    truth = _b50(lambda budget: rate(budget, middle, width))
    known = covered = 0
    for repeat in range(repeats):
        scores, clusters = worlds.curve(world, setting["n"], rates, rng)
        low, high = fit(BUDGETS, scores, clusters.tolist(), CONFIDENCE, repeat).b50.interval
        if not math.isnan(high):
            known += 1
            covered += low <= truth <= high
    return {"repeats": repeats, "known": known, "covered": covered}


def _logistic(budget: float, middle: float, width: float) -> float:
    return 0.05 + 0.9 / (1 + math.exp(-(math.log2(budget) - math.log2(middle)) / width))


def _weibull(budget: float, middle: float, width: float) -> float:
    """Falls slowly above the middle and fast below it; as steep there as the logistic curve."""
    power = 1 / (2 * math.log(2) ** 2 * width)
    return 0.05 + 0.9 * (1 - math.exp(-math.log(2) * (budget / middle) ** power))


_CURVES = {"logistic": _logistic, "Weibull": _weibull}


def _b50(rate: Callable[[float], float]) -> float:
    """The budget at which the curve is at half of its value at the full cache."""
    return float(brentq(lambda budget: rate(budget) - rate(1.0) / 2, 1e-4, 1.0))


def _enough(setting: Setting) -> bool:
    return bool(setting["n"] >= 100)


PARTS = [
    Part(
        "breaks",
        "Breaks and slopes",
        "Eight budgets, the same n prompts at each. *Break*: a step of at least 0.15 whose paired "
        "test holds after Holm's correction (`kvx.stats.transition.first_break`). *Step*: a step "
        "predicts prompts that were left out better than slopes do "
        "(`kvx.stats.curve_shape.step_out_of_sample`). *Zone*: both, at one place.",
        settings_of(
            world=["independent", "5 a text, ICC 0.4"], n=[24, 50, 100, 200], shape=list(SHAPES)
        ),
        breaks,
        (
            Ask("break where there is none", "said_none", "repeats", 0.0, 0.05),
            Ask("break at the cliff", "said_cliff", "repeats", 0.9, 1.0, asked=_enough),
            Ask("step where there is none", "stepped_none", "repeats", 0.0, 0.05),
            Ask("step at the cliff", "stepped_cliff", "repeats", 0.9, 1.0, asked=_enough),
            Ask("zone where there is none", "zones_none", "repeats", 0.0, 0.05),
            Ask("zone at the cliff", "zones_cliff", "repeats", 0.9, 1.0, asked=_enough),
        ),
        ("world", "n", "shape"),
        repeats=500,
    ),
    Part(
        "halves",
        "The budget that keeps half",
        "`kvx.stats.dose_response.fit`: the interval of b50. Curves are logistic in the logarithm "
        "of the budget, as the model has it, with a guess and a lapse rate of 5%, or Weibull's, "
        "which are not symmetric.",
        settings_of(
            curve=["logistic"], world=["independent", "5 a text, ICC 0.4"], n=[50, 200],
            middle=[0.2, 0.4], width=[0.2, 0.5],
        )
        + settings_of(
            curve=["Weibull"], world=["independent"], n=[50, 200], middle=[0.2, 0.4],
            width=[0.2, 0.5],
        ),
        halves,
        (Ask("95% intervals cover", "covered", "known", 0.94, 0.975, strict=False),),
        ("curve", "world", "n"),
        repeats=250,
    ),
]  # fmt: skip
