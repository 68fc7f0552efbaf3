"""Checks, before the start, whether a controller can steer what a run generates.

`Controller.check` is about the controller itself, wherever it is used.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kvx.config.guard import GuardConfig
from kvx.config.identity import is_guarded
from kvx.config.press_choices import PressNeed
from kvx.config.schema import BudgetKind, Config
from kvx.errors import UserError
from kvx.guard.controllers import NoController
from kvx.guard.controllers.base import Thresholds, check_live, policy
from kvx.guard.own_code import check_code
from kvx.identity import hazard_files

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


def live(configs: Sequence[Config]) -> list[Config]:
    """The configurations of a run, each with a controller that can act in it, or none.

    The full cache leaves a controller nothing to give back: in a sweep such a point stands for the
    full cache without one. Raises `UserError` for a controller that cannot act, or if all points
    are of that kind.
    """
    for config in configs:
        if is_guarded(config):
            check_possible(config)
            check_code(config.controller)
    idle = [is_guarded(c) and keeps_all(c) for c in configs]
    if configs and all(idle):
        raise UserError(
            f"controller={configs[0].controller.name}: the full cache leaves it nothing to give "
            "back; choose a press and a budget below 1.0, or controller=none"
        )
    found = [unguarded(c) if lazy else c for c, lazy in zip(configs, idle, strict=True)]
    _check_models([c for c in found if c.controller.needs_hazard])
    return found


def unguarded(config: Config) -> Config:
    """The same point without a controller."""
    return replace(config, controller=NoController(name="none"), guard=GuardConfig())


def keeps_all(config: Config) -> bool:
    """Whether a point keeps every entry of every prompt."""
    return config.press.method is None or (
        config.budget.kind is BudgetKind.ratio and config.budget.ratio == 1.0
    )


def check_served(config: Config) -> None:
    """Raises `UserError` if a server's controller cannot act, or not on the server's own press."""
    if is_guarded(config):
        check_possible(config)
        check_code(config.controller)
        _check_models([config] if config.controller.needs_hazard else [])


def check_possible(config: Config) -> None:
    """Raises `UserError` if the configuration's controller cannot steer its engine or press."""
    controller, press = config.controller, config.press
    name = f"controller={controller.name}"
    if not NAME.fullmatch(controller.name) or controller.name == "none":
        raise UserError(
            f"controller.name={controller.name}: is part of a folder's name; use letters, digits "
            "and _ . + -, and not none, which is that of points without a controller"
        )
    if config.engine.name != "kvpress":
        raise UserError(
            f"{name}: cannot act in engine={config.engine.name}, a server it does not control; "
            "use engine=kvpress, or kvx.serve with this controller"
        )
    if PressNeed.masks in press.needs:
        raise UserError(
            f"{name}: press={press.name} hides entries and evicts none, so there is nothing that "
            "could come back; use an evicting press such as snapkv, knorm or streaming"
        )
    if PressNeed.changes_forward in press.needs:
        raise UserError(
            f"{name}: press={press.name} changes the forward pass, so the entries it drops are not "
            "the full cache's; use a press that only evicts, such as snapkv, knorm or streaming"
        )
    check_live(controller)


def _check_models(configs: Sequence[Config]) -> None:
    """Raises `UserError` for a hazard model that is missing, damaged or not for live use."""
    if not configs:
        return
    cards = {folder: _thresholds(folder) for folder in {_folder(c) for c in configs}}
    for config in configs:
        policy(config.controller, cards[_folder(config)])


def _folder(config: Config) -> Path:
    return hazard_files.folder_of(config.guard.model)


def _thresholds(folder: Path) -> Thresholds:
    from kvx.guard.features import FeatureState  # and XGBoost takes half a second
    from kvx.guard.hazard import HazardModel

    model = HazardModel.load(folder)
    try:
        FeatureState(model.names)
    except KeyError as error:
        raise UserError(
            f"{folder / hazard_files.CARD}: not a model for live use: {error.args[0]}; train one "
            "with train.features=full"
        ) from None
    return Thresholds.of(model.card)
