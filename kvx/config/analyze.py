"""Configuration of kvx.analyze."""

from dataclasses import dataclass
from enum import Enum

from kvx.config.fields import option


class Family(Enum):
    """Which comparisons share one error rate (Holm's correction)."""

    experiment = "experiment"
    variant = "variant"
    curve = "curve"


@dataclass
class AnalyzeConfig:
    confidence: float = option(0.95, "level of the confidence intervals", above=0, below=1)
    family: Family = option(
        Family.experiment,
        "comparisons that share one error rate (Holm): every point of the experiment, of a variant "
        "(model, data, decoding), or of a curve (one press's budgets); bins and catastrophes are "
        "explored (Benjamini-Hochberg)",
    )
    n_boot: int = option(10_000, "bootstrap samples", at_least=100)
    seed: int = option(0, "seed of the bootstrap", at_least=0)
    transition_drop: float = option(
        0.15,
        "a break: the mean falls by this much below the next higher budget, and a test says so "
        "(classic rule: the fall alone)",
        above=0,
    )
    spread_jump: float = option(0.10, "instability zone: the sd of graded scores, or …", above=0)
    failure_jump: float = option(
        0.10,
        "… the failure rate goes up by this much, and a test says so, while the mean has not "
        "collapsed",
        above=0,
    )
    baseline_floor: float = option(
        0.20, "below this score, the full cache leaves no room to see damage", at_least=0, at_most=1
    )
    margin: float = option(
        0.02,
        "equivalence: the loss against the full cache that is called harmless",
        above=0,
        below=1,
        words="between 0 and 1, for example 0.02",
    )
    budget_tolerance: float = option(
        0.05,
        "presses compare where their measured budgets differ by no more than this share",
        at_least=0,
        below=1,
    )
    pass_at: list[int] = option(
        [], "the k of pass@k where seeds are samples; empty: 1, 2, 4, … and all samples", at_least=1
    )
