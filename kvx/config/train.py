"""Structured configuration of kvx.train and kvx.verify."""

from dataclasses import dataclass
from enum import Enum

from kvx.config.fields import option


class Labels(Enum):
    """The catastrophes to forecast."""

    excess = "excess"  # those that the full cache does not share
    any = "any"


class Target(Enum):
    """What the written model forecasts within its horizon."""

    onset = "onset"  # the first token of a loop
    detection = "detection"  # the token with which the loop detector first reports it


class ClassWeight(Enum):
    """The weight of a positive token, by the number n of negatives per positive."""

    balanced = "balanced"  # n
    sqrt = "sqrt"  # its square root
    none = "none"


class Calibration(Enum):
    platt = "platt"
    isotonic = "isotonic"


class LeaveOut(Enum):
    press = "press"
    model = "model"
    dataset = "dataset"


def _three_shares(shares: list[float]) -> str | None:
    if len(shares) == 3 and abs(sum(shares) - 1) <= 1e-6:
        return None
    return f"={shares}: give three shares above 0 that add up to 1 (train, validation, threshold)"


@dataclass
class TrainConfig:
    """Training and judging the hazard model. Every split is by prompt."""

    features: str = option("full", "feature set; docs/guard/training.md lists them")
    target: Target = option(
        Target.onset,
        "what is foreseen: the onset of a loop, or the token at which the detector reports it",
    )
    horizon: int = option(
        32, "tokens ahead within which a catastrophe is to be foreseen", at_least=1
    )
    labels: Labels = option(Labels.excess, "excess: those that the full cache does not share")
    degenerate: bool = option(False, "learn from degenerate requests too")
    folds: int = option(
        5, "outer folds by prompt: figures are of prompts that nothing was fitted on", at_least=2
    )
    shares: list[float] = option(
        [0.6, 0.2, 0.2],
        "shares of the other prompts: train, validation (early stopping, calibration), threshold",
        above=0,
        below=1,
        check=_three_shares,
    )
    seed: int = option(0, "seed of the splits and of XGBoost", at_least=0, below=2**31)
    max_tokens: int = option(150_000, "a fit learns from at most this many tokens", at_least=1000)
    rounds: int = option(600, "trees at most; patience ends it earlier", at_least=1)
    patience: int = option(30, "rounds without improvement until a fit stops", at_least=1)
    max_depth: int = option(3, "depth of a tree", at_least=0, words="0 (no limit) or more")
    eta: float = option(0.05, "learning rate", above=0, at_most=1)
    subsample: float = option(0.8, "share of rows of each tree", above=0, at_most=1)
    colsample_bytree: float = option(
        0.3,
        "share of columns of each tree: a token is much like the one before, so few columns and "
        "large leaves",
        above=0,
        at_most=1,
    )
    min_child_weight: float = option(50.0, "weight of a leaf at least", at_least=0)
    class_weight: ClassWeight = option(
        ClassWeight.sqrt, "weight of a positive token, of the negatives per positive"
    )
    calibration: Calibration = option(Calibration.platt, "how scores become probabilities")
    threads: int | None = option(None, "null: OMP_NUM_THREADS, else all cores", at_least=1)
    ablations: list[str] | None = option(
        None, "feature sets reported beside the model's; null: all"
    )
    horizons: list[int] = option([16, 64, 128], "reported beside horizon", at_least=1)
    leave_out: list[LeaveOut] = option(
        [LeaveOut.press, LeaveOut.model, LeaveOut.dataset],
        "what is left out of training, one value after the other, to judge on it",
    )
    compare: str | None = option(
        None, "a folder with another model, to be judged on this experiment"
    )
    n_boot: int = option(2000, "bootstrap samples", at_least=100)
    confidence: float = option(0.95, "level of the confidence intervals", above=0, below=1)


@dataclass
class VerifyConfig:
    """What training needs of an experiment: prompts, and prompts with events."""

    min_prompts: int = option(
        30, "fewer: a warning; fewer than a split needs: a failure", at_least=0
    )
    min_event_prompts: int = option(10, "prompts with a catastrophe to learn from", at_least=0)
    max_baseline_capped: float = option(
        0.5, "share of full-cache runs that reach the token cap", at_least=0, at_most=1
    )
    max_baseline_looping: float = option(
        0.2, "share of full-cache runs that loop", at_least=0, at_most=1
    )
    max_degenerate: float = option(0.25, "share of degenerate requests", at_least=0, at_most=1)
