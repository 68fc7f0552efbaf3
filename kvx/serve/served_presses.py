"""The presses a request may name: those of conf/press, read once when the server starts."""

from collections.abc import Sequence
from dataclasses import replace

from kvx.cli.checks import check
from kvx.cli.press_files import shipped_presses
from kvx.config.press_choices import PressNeed
from kvx.config.schema import BudgetConfig, BudgetKind, PressConfig
from kvx.engines.kvpress.applicability import missing_of, reason
from kvx.engines.kvpress.press_check import check_method
from kvx.errors import UserError
from kvx.points import Point
from kvx.serve.api_errors import invalid
from kvx.serve.requests import Compression


class Presses:
    """By name, the server's own (with its arguments of the command line) among them.

    Raises `UserError` if the server's own cannot be served.
    """

    def __init__(self, own: Point) -> None:
        self.own = own.config
        self._served: dict[str, PressConfig] = {}
        self._refused: dict[str, str] = {}
        for press in [
            *(p for p in shipped_presses() if p.name != self.own.press.name),
            self.own.press,
        ]:
            if (reason := _obstacle(press, own)) is None:
                self._served[press.name] = press
            else:
                self._refused[press.name] = reason
        if (reason := self._refused.get(self.own.press.name)) is not None:
            raise UserError(f"press={self.own.press.name}: {reason}")

    @property
    def names(self) -> Sequence[str]:
        return sorted(self._served)

    def resolve(self, asked: Compression) -> tuple[PressConfig, BudgetConfig]:
        """What a request asks for; the server's own where it asks for nothing. Raises `ApiError`.

        A request that names another press than the server's and no budget gets the server's budget;
        one that asks for press=none gets the full cache.
        """
        press, budget = self.own.press, self.own.budget
        if asked.press is not None:
            press = self._named(asked.press)
            if press.method is None:
                budget = BudgetConfig()
        if asked.budget is not None:
            budget = BudgetConfig(ratio=asked.budget)
        elif asked.budget_tokens is not None:
            budget = BudgetConfig(kind=BudgetKind.tokens, tokens=asked.budget_tokens)
        try:
            check(replace(self.own, press=press, budget=budget))
        except UserError as error:
            raise invalid(str(error), "kvx.budget") from None
        return press, budget

    def _named(self, name: str) -> PressConfig:
        if (reason := self._refused.get(name)) is not None:
            raise invalid(f"press={name}: {reason}", "kvx.press", "press_not_served")
        if name not in self._served:
            known = ", ".join(self.names)
            raise invalid(f"unknown press; choose one of {known}", "kvx.press", "press_unknown")
        return self._served[name]


def _obstacle(press: PressConfig, own: Point) -> str | None:
    """Why requests of this press cannot be decoded with others; None if they can."""
    if press.method is None:
        return None
    if PressNeed.masks in press.needs:
        return "hides entries instead of dropping them, so the server cannot save anything by it"
    model = own.config.model
    if (why := reason(press, model, missing_of(model) or {})) is not None:
        return f"not applicable to model={model.name}: {why}"
    try:
        check_method(replace(own, config=replace(own.config, press=press)))
    except UserError as error:
        return str(error).removeprefix(f"press={press.name}: ")
    return None
