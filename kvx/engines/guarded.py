"""`kvx.guarded`: a guard around a transformers model that the caller has loaded."""

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvx.config.controller import ControllerConfig
    from kvx.config.guard import Shadow
    from kvx.engines.kvpress.library import GuardedModel


def guarded(
    model: Any,
    press: Any,
    controller: "str | ControllerConfig" = "balanced",
    *,
    tokenizer: Any = None,
    hazard_model: str | PathLike[str] | None = None,
    shadow: "str | Shadow" = "host",
    ladder: Sequence[float] = (0.25, 0.5),
    max_interventions: int = 4,
    let_go: bool = True,
) -> "GuardedModel":
    """`model` with the kvpress `press` and a controller that gives back what it dropped.

    `.generate(**inputs, max_new_tokens=…)` returns what `model.generate` would; the result is also
    a `custom_generate` of transformers. `controller` is an option of `conf/controller/`, or an
    object of a class in `kvx.guard.controllers` or of your own; `hazard_model` a directory as
    `kvx.train` writes it, None for the packaged one. `shadow` (host, recompute, none), `ladder`
    (budgets), `max_interventions` and `let_go` are `guard.*` of docs/guard/live.md. A `tokenizer`
    tells a hazard model at which tokens the model reconsiders.

    Raises `kvx.errors.ArgumentError`, a ValueError, in one line for what cannot be guarded.
    """
    from kvx.engines.kvpress.arguments import check_tokenizer, controller_config, guard_config
    from kvx.engines.kvpress.library import GuardedModel

    guard = guard_config(shadow, hazard_model, ladder, max_interventions, let_go)
    check_tokenizer(tokenizer)
    return GuardedModel(model, press, controller_config(controller), tokenizer, guard)
