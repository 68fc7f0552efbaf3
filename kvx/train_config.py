"""Structured configuration of kvx.train and kvx.verify."""

from dataclasses import dataclass, field
from enum import Enum


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
    horizon: int = 32
    labels: Labels = Labels.excess
    degenerate: bool = False
    folds: int = 5
    shares: list[float] = field(default_factory=lambda: [0.6, 0.2, 0.2])
    seed: int = 0
    max_tokens: int = 150_000
    rounds: int = 600
    patience: int = 30
    max_depth: int = 3
    eta: float = 0.05
    subsample: float = 0.8
    colsample_bytree: float = 0.3
    min_child_weight: float = 50.0
    class_weight: ClassWeight = ClassWeight.sqrt
    calibration: Calibration = Calibration.platt
    threads: int | None = None
    # reported beside the model: other feature sets, other horizons, what is left out of training
    ablations: list[str] = field(
        default_factory=lambda: [
            "original40", "full", "logit_only", "no_budget", "no_repetition", "metadata_only",
            "top20",
        ]
    )  # fmt: skip
    horizons: list[int] = field(default_factory=lambda: [16, 64, 128])
    leave_out: list[LeaveOut] = field(
        default_factory=lambda: [LeaveOut.press, LeaveOut.model, LeaveOut.dataset]
    )
    compare: str | None = None
    n_boot: int = 2000
    confidence: float = 0.95


@dataclass
class VerifyConfig:
    """What an experiment must hold to be learnt from: prompts, and events in so many prompts."""

    min_prompts: int = 30
    min_event_prompts: int = 10
    max_baseline_capped: float = 0.5
    max_baseline_looping: float = 0.2
    max_degenerate: float = 0.25
