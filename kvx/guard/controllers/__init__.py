"""Controllers, one class each; `conf/controller/` names them by `_target_`."""

from kvx.guard.controllers.always_safe import AlwaysSafe
from kvx.guard.controllers.base import Alarms, Controller
from kvx.guard.controllers.gate import Gate
from kvx.guard.controllers.hazard import Hazard
from kvx.guard.controllers.none import NoController
from kvx.guard.controllers.random import Random
from kvx.guard.controllers.reactive import Reactive
from kvx.guard.controllers.rule_based import RuleBased

__all__ = [
    "Alarms",
    "AlwaysSafe",
    "Controller",
    "Gate",
    "Hazard",
    "NoController",
    "Random",
    "Reactive",
    "RuleBased",
]
