"""Structured configuration of kvx.train and kvx.verify."""

from dataclasses import dataclass, field
from enum import Enum

from kvx.config.ranges import within


class Labels(Enum):
    """Which catastrophes are to be foreseen."""

    excess = "excess"  # those that the full-cache twin does not share
    any = "any"


class Target(Enum):
    """What the model that is written foresees within its horizon."""

    onset = "onset"  # the first token of a loop
    detection = "detection"  # the token with which the loop detector first reports it


class ClassWeight(Enum):
    """What a positive token weighs, by the number n of negatives per positive."""

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


@dataclass
class TrainConfig:
    """Training and judging the hazard model. Every split is by prompt."""

    features: str = "full"
    target: Target = Target.onset
    horizon: int = within(32, at_least=1)
    labels: Labels = Labels.excess
    degenerate: bool = False
    folds: int = within(5, at_least=2)
    shares: list[float] = within([0.6, 0.2, 0.2], above=0, below=1)
    seed: int = within(0, at_least=0, below=2**31)  # XGBoost takes no more
    max_tokens: int = within(150_000, at_least=1000)
    rounds: int = within(600, at_least=1)
    patience: int = within(30, at_least=1)
    max_depth: int = within(3, at_least=0, words="0 (no limit) or more")
    eta: float = within(0.05, above=0, at_most=1)
    subsample: float = within(0.8, above=0, at_most=1)
    colsample_bytree: float = within(0.3, above=0, at_most=1)
    min_child_weight: float = within(50.0, at_least=0)
    class_weight: ClassWeight = ClassWeight.sqrt
    calibration: Calibration = Calibration.platt
    threads: int | None = within(None, at_least=1)
    # reported beside the model: other feature sets, other horizons, what is left out of training
    ablations: list[str] = field(
        default_factory=lambda: [
            "original40", "full", "logit_only", "no_budget", "no_repetition", "metadata_only",
            "top20",
        ]
    )  # fmt: skip
    horizons: list[int] = within([16, 64, 128], at_least=1)
    leave_out: list[LeaveOut] = field(
        default_factory=lambda: [LeaveOut.press, LeaveOut.model, LeaveOut.dataset]
    )
    compare: str | None = None
    n_boot: int = within(2000, at_least=100)
    confidence: float = within(0.95, above=0, below=1)


@dataclass
class VerifyConfig:
    """What an experiment must hold to be learnt from: prompts, and events in so many prompts."""

    min_prompts: int = within(30, at_least=0)
    min_event_prompts: int = within(10, at_least=0)
    max_baseline_capped: float = within(0.5, at_least=0, at_most=1)
    max_baseline_looping: float = within(0.2, at_least=0, at_most=1)
    max_degenerate: float = within(0.25, at_least=0, at_most=1)
