"""kvx.serve budget=certified: the budget of a certificate that is for this server."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvx import __version__
from kvx.config.controller import RECORD
from kvx.config.identity import resolved
from kvx.config.schema import BudgetConfig, BudgetKind, Config
from kvx.data.tokenizer import model_hash
from kvx.errors import UserError
from kvx.guard.own_code import controller_sources
from kvx.identity.hashing import package_digest
from kvx.identity.user_code import identity_of, sources_of, told
from kvx.points import budget_label, guard_identity, unsaid_guard
from kvx.serve.promise import Promise

if TYPE_CHECKING:  # a server without a certificate needs none of the tables of experiments
    from kvx.certify.certificate import Certificate, Tested

log = logging.getLogger(__name__)


def with_certified_budget(config: Config) -> tuple[Config, Promise | None]:
    """`config` with its certificate's budget in place of `budget=certified`, and the promise.

    Raises `UserError` if there is no such certificate, it is of another model, press or controller,
    or it certifies no budget.
    """
    asked = config.budget.kind is BudgetKind.certified
    if not asked and config.certificate is not None:
        raise UserError(
            f"certificate={config.certificate}: does not apply to "
            f"budget={budget_label(config.budget)}; add budget=certified"
        )
    if not asked:
        return config, None
    for field in ("ratio", "tokens"):
        value = getattr(config.budget, field)
        if value != getattr(BudgetConfig(), field):
            raise UserError(
                f"budget=certified: the certificate sets the budget; leave out "
                f"budget.{field}={value}"
            )
    if config.certificate is None:
        raise UserError("budget=certified: needs certificate=FILE, a JSON file of kvx.certify")
    from kvx.certify.certificate import read
    from kvx.certify.page import conditions, summary

    found = read(Path(config.certificate))
    check(found, config)
    budget = budget_of(found, config.certificate)
    log.info("serve: certificate: %s; %s", summary(found), conditions(found))
    return replace(config, budget=budget), Promise(found, Path(config.certificate).name)


def budget_of(found: "Certificate", name: str) -> BudgetConfig:
    """Raises `UserError` if no budget is certified."""
    best: Tested | None = found.budget
    if best is None:
        raise UserError(
            f"certificate={name}: certifies no budget below 1.0; serve budget=1.0, or certify with "
            "more prompts, other budgets or a larger certify.alpha"
        )
    if best.tokens is not None:
        return BudgetConfig(kind=BudgetKind.tokens, tokens=best.tokens)
    assert best.ratio is not None
    return BudgetConfig(ratio=best.ratio)


def check(found: "Certificate", config: Config) -> None:
    """Raises `UserError` unless model, press, controller and kvx are those of the certificate."""
    if found.code != package_digest():
        raise UserError(
            f"certificate={config.certificate}: was made by different code of kvx (version "
            f"{found.kvx}, code {found.code}; this is {__version__}, {package_digest()}): it may "
            "not hold here; run kvx.score and kvx.certify again with this kvx"
        )
    wrong = f"certificate={config.certificate}: is for"
    here = model_hash(config.model)
    if found.model["hash"] != here:
        raise UserError(
            f"{wrong} model={found.model['name']} (hash {found.model['hash']}), this is "
            f"model={config.model.name} (hash {here}); serve that model or certify this one"
        )
    if found.model["dtype"] != config.model.dtype:
        raise UserError(
            f"{wrong} model.dtype={found.model['dtype']}, this is {config.model.dtype}; set "
            f"model.dtype={found.model['dtype']} or certify this one"
        )
    name, method = config.press.name, config.press.method
    if found.press["name"] != name:
        raise UserError(
            f"{wrong} press={found.press['name']}, this is press={name}; set "
            f"press={found.press['name']}, or certify the other"
        )
    if found.press["method"] != method:
        theirs, ours = found.press["method"], method or {}
        field = next(k for k in sorted({*theirs, *ours}) if theirs.get(k) != ours.get(k))
        raise UserError(
            f"{wrong} press={name} with {field}={theirs.get(field)}, this has {ours.get(field)}; "
            f"set press.method.{field}={theirs.get(field)} or certify this one"
        )
    theirs, ours = found.press.get("code", {}), identity_of(sources_of(method))
    if theirs != ours:
        target = next(t for t in sorted({*theirs, *ours}) if theirs.get(t) != ours.get(t))
        asked, here = (told({t: c[t] for t in c if t == target}) or "-" for c in (theirs, ours))
        raise UserError(
            f"{wrong} press={name} with different code of {target} ({asked}), this has {here}; run "
            "and certify this one"
        )
    _check_controller(found, config, wrong)


def _check_controller(found: "Certificate", config: Config, wrong: str) -> None:
    from kvx.certify.series import steering

    code = identity_of(controller_sources(config.controller))
    ours = steering(resolved(config.controller), code, guard_identity(config))
    theirs = {k: v for k, v in found.controller.items() if k != "label"}
    asked, here = _settings(theirs), _settings(ours)
    if asked == here:
        return
    name = config.controller.name
    if theirs["name"] != name:
        raise UserError(
            f"{wrong} controller={found.controller['label']}, this is controller={name}; set the "
            "same one, or certify this one"
        )
    field = next(f for f in {**asked, **here} if asked.get(f) != here.get(f))
    if field == "controller.code":
        old, new = (told(settings.get(field, {})) or "-" for settings in (asked, here))
        raise UserError(
            f"{wrong} controller={name} with another code of {config.controller.target} "
            f"({old}), this has {new}; run and certify this one"
        )
    if field == "guard.model":
        raise UserError(
            f"{wrong} controller={name} with the hazard model {asked.get(field)}, this has "
            f"{here.get(field)}; set guard.model to the same one, or certify this one"
        )
    raise UserError(
        f"{wrong} controller={name} with {field}={_typed(asked.get(field))}, this has "
        f"{_typed(here.get(field))}; set {field}={_typed(asked.get(field))}, or certify this one"
    )


def _settings(steering: dict[str, Any]) -> dict[str, Any]:
    """Every setting of a controller as it is typed, including those at their default."""
    own = {**RECORD} | steering
    guard = unsaid_guard() | own.pop("guard", {})
    return {f"controller.{k}": v for k, v in own.items()} | {
        f"guard.{k}": v for k, v in guard.items()
    }


def _typed(value: Any) -> str:
    """As the command line takes it."""
    return json.dumps(value, separators=(",", ":")) if not isinstance(value, str) else value
