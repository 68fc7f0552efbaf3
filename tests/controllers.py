"""Every controller of kvx with settings that only some of them have."""

import dataclasses
from typing import Any

from kvx.guard import controllers
from kvx.guard.controllers import Controller

CLASSES: tuple[type[Controller], ...] = (
    controllers.NoController,
    controllers.Hazard,
    controllers.RuleBased,
    controllers.Reactive,
    controllers.Gate,
    controllers.AlwaysSafe,
    controllers.Random,
)


def with_own(cls: type[Controller], **settings: Any) -> Controller:
    """A controller of the `settings` that are fields of its class."""
    own = {f.name for f in dataclasses.fields(cls)}
    return cls(**{name: value for name, value in settings.items() if name in own})
