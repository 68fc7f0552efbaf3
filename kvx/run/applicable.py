"""Points of a sweep that cannot be run: with their press's model, prompts, budget or server."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from kvx.config.engine import OpenAIConfig
from kvx.config.numbers import plural
from kvx.config.schema import Config
from kvx.engines.kvpress import applicability
from kvx.errors import NotApplicableError, UserError
from kvx.points import Point

log = logging.getLogger(__name__)
KVPRESS = "kvx.engines.kvpress.engine.KVPressEngine"


def not_applicable(points: Sequence[Point]) -> dict[Path, str]:
    """By directory, why each of these points is not applicable; the others are not in it.

    From configurations and manifests alone. What presses another engine can run is not known here.
    """
    found: dict[Path, str] = {}
    known: dict[tuple[int, int, int, bool], str | None] = {}  # points of a sweep share their parts
    for point in points:
        config, reason = point.config, None
        if config.engine._target_ == KVPRESS:
            key = (id(config.press), id(config.model), id(config.prompt), config.budget.is_full)
            if key not in known:
                known[key] = applicability.not_applicable(config)
            reason = known[key] or applicability.unfit_prompt(point)
        elif isinstance(config.engine, OpenAIConfig) and config.engine.endpoints:
            from kvx.engines.openai.body import no_endpoint

            reason = no_endpoint(point)
        if reason is not None:
            found[point.dir] = reason
    return found


def refused(points: Sequence[Point], check: Callable[[Sequence[Point]], None]) -> dict[Path, str]:
    """By directory, why `check` finds points not applicable, asked again without those it found.

    Raises `UserError` for anything else that it finds.
    """
    found: dict[Path, str] = {}
    while left := [point for point in points if point.dir not in found]:
        try:
            check(left)
            break
        except NotApplicableError as error:
            found |= error.reasons
    return found


def in_lines(points: Sequence[Point], reasons: Mapping[Path, str]) -> list[str]:
    """One line for each press, model and reason."""
    return _lines((p.config, reasons[p.dir]) for p in points if p.dir in reasons)


def tell(
    points: Sequence[Point], reasons: Mapping[Path, str], new: Mapping[Path, str] | None = None
) -> None:
    """Log a line for each press and reason, of `new` only if that is given.

    Raises `UserError` with the first of them if nothing else was asked for.
    """
    lines = in_lines(points, reasons if new is None else new)
    if lines and len(reasons) == len(points):
        raise _nothing_left(lines)
    for line in lines:
        log.warning("run: %s", line)


def refuse_all(configs: Sequence[Config]) -> None:
    """Raises `UserError` where no configuration's press can be used, whatever its prompts are.

    Before they are prepared, which can take long.
    """
    told = []
    for config in configs:
        if (
            config.engine._target_ != KVPRESS
            or (why := applicability.not_applicable(config)) is None
        ):
            return
        told.append((config, why))
    if told:
        raise _nothing_left(_lines(told))


def _nothing_left(lines: Sequence[str]) -> UserError:
    more = f" (and {len(lines) - 1} more such)" if len(lines) > 1 else ""
    return UserError(f"{lines[0]}{more}; choose another press or model (kvx presses lists them)")


def _lines(told: Iterable[tuple[Config, str]]) -> list[str]:
    counts = Counter((config.press.name, config.model.name, why) for config, why in told)
    return [
        f"press={press} on model={model}: not applicable: {reason} ({plural(n, 'point')})"
        for (press, model, reason), n in counts.items()
    ]
