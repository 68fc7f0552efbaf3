"""The arguments of `kvx.guarded` as configurations. Imports no torch."""

import operator
import os
from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kvx.config import fields
from kvx.config.controller import ControllerConfig
from kvx.config.controller_files import names
from kvx.config.controller_options import named
from kvx.config.guard import GuardConfig, Shadow
from kvx.config.messages import plainly
from kvx.errors import ArgumentError, UserError, shown


def guard_config(
    shadow: Any, hazard_model: Any, ladder: Sequence[float], max_interventions: int, let_go: bool
) -> GuardConfig:
    """Raises `ArgumentError` naming the first argument that cannot be right."""
    place = shadow.name if isinstance(shadow, Shadow) else shadow
    if not isinstance(place, str) or place not in Shadow.__members__:
        given = shadow if isinstance(shadow, str) else shown(shadow)
        raise ArgumentError(f"shadow={given}: must be one of {', '.join(Shadow.__members__)}")
    if not isinstance(hazard_model, str | os.PathLike | None):
        raise ArgumentError(
            f"hazard_model={shown(hazard_model)}: must be a directory as kvx.train writes it, "
            "or None for the packaged model"
        )
    where = None if hazard_model is None else str(hazard_model)
    try:
        if isinstance(max_interventions, bool):
            raise TypeError
        most = operator.index(max_interventions)
    except TypeError:
        raise ArgumentError(
            f"max_interventions={shown(max_interventions)}: must be a whole number of at least 1"
        ) from None
    if not isinstance(let_go, bool | np.bool_):
        raise ArgumentError(f"let_go={shown(let_go)}: must be True or False")
    guard = GuardConfig(Shadow[place], where, _budgets(ladder), most, bool(let_go))
    try:
        fields.check(guard, "guard.")
    except UserError as error:
        raise ArgumentError(str(error).removeprefix("guard.")) from None
    return guard


def controller_config(controller: Any) -> ControllerConfig:
    """An option by its name, or somebody's own with its fields checked and enums of their names.

    Raises `ArgumentError`.
    """
    if isinstance(controller, str):
        try:
            return named(controller)
        except UserError as error:
            raise ArgumentError(str(error)) from None
    if not isinstance(controller, ControllerConfig):
        instead = '; without one: "none"' if controller is None else ""
        raise ArgumentError(
            f"controller={shown(controller)}: must be a name ({', '.join(names())}) or a "
            f"controller of kvx.guard.controllers, such as Random(rate=0.01){instead}"
        )
    given = {k: v.item() for k, v in vars(controller).items() if isinstance(v, np.generic)}
    if controller.name == MISSING:
        given["name"] = "custom"
    try:
        config = OmegaConf.to_object(OmegaConf.structured(replace(controller, **given)))
    except OmegaConfBaseException as error:
        field, why = error.full_key, plainly(str(error).splitlines()[0])
        raise ArgumentError(
            f"controller.{field}={shown(getattr(controller, field or '', None))}: {why}"
        ) from None
    assert isinstance(config, ControllerConfig)
    return config


def check_tokenizer(tokenizer: Any) -> None:
    decodes = callable(getattr(tokenizer, "decode", None)) and not isinstance(tokenizer, type)
    if tokenizer is not None and not decodes:
        raise ArgumentError(
            f"tokenizer={shown(tokenizer)}: must be a tokenizer object of transformers, such as "
            "AutoTokenizer.from_pretrained(...) returns"
        )


def _budgets(ladder: Any) -> list[float]:
    try:
        steps = list(ladder)
    except TypeError:
        steps = [None]
    if not all(isinstance(step, Real) for step in steps):
        raise ArgumentError(
            f"ladder={shown(ladder)}: must be a list of ascending budgets between 0 and 1, such as "
            "(0.25, 0.5)"
        )
    return [float(step) for step in steps]
