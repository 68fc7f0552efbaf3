"""The code of a controller of the user's own: what stands for it, and whether it has changed."""

from collections.abc import Mapping
from typing import Any

from kvx.config.controller import ControllerConfig
from kvx.config.controller_files import TARGET, class_named
from kvx.errors import UserError
from kvx.identity.user_code import identity_of, sources_of


def controller_sources(controller: ControllerConfig) -> dict[str, str]:
    """`sources_of` the class of a controller; empty for kvx's own, and for one that never acts."""
    if not controller.acts or not controller.is_users:
        return {}
    return sources_of({TARGET: controller.target})


def controller_code(info: Mapping[str, Any]) -> dict[str, str]:
    """`identity_of` the controller of a finished point, by its `point.json`."""
    target, sources = info["config"]["controller"].get(TARGET), info.get("sources") or {}
    return identity_of({target: sources[target]} if target in sources else {})


def check_code(controller: ControllerConfig, planned: Mapping[str, str] | None = None) -> None:
    """Raises `UserError` if the code of a controller is another than when it was asked for.

    With `planned`, also if it is another than these `controller_sources`.
    """
    found = controller_sources(controller)  # what changed is forgotten, and imported again
    if not found and not planned:
        return
    current = class_named(controller.target) is type(controller)
    if not current or (planned is not None and found != planned):
        raise UserError(
            f"controller={controller.name}: the code of {controller.target} changed while this was "
            "starting; type the command again"
        )
