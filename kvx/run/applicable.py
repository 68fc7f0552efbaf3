"""Points of a sweep that cannot be run, because their press cannot be used on their model."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from kvx.config.numbers import plural
from kvx.engines.kvpress import applicability
from kvx.errors import UserError
from kvx.points import Point

log = logging.getLogger(__name__)
KVPRESS = "kvx.engines.kvpress.engine.KVPressEngine"


def not_applicable(points: Sequence[Point]) -> dict[Path, str]:
    """By directory, why each of these points is not applicable; the others are not in it.

    From configurations alone. Of a server's presses, or of another engine's, nothing is known here.
    """
    found: dict[Path, str] = {}
    known: dict[tuple[int, int, bool], str | None] = {}  # points of a sweep share their parts
    for point in points:
        config = point.config
        if config.engine._target_ != KVPRESS:
            continue
        key = (id(config.press), id(config.model), config.budget.is_full)
        if key not in known:
            known[key] = applicability.not_applicable(config)
        if (reason := known[key]) is not None:
            found[point.dir] = reason
    return found


def in_lines(points: Sequence[Point], reasons: Mapping[Path, str]) -> list[str]:
    """One line for each press, model and reason."""
    lines = Counter(
        (p.config.press.name, p.config.model.name, reasons[p.dir])
        for p in points
        if p.dir in reasons
    )
    return [
        f"press={press} on model={model}: not applicable: {reason} ({plural(n, 'point')})"
        for (press, model, reason), n in lines.items()
    ]


def tell(points: Sequence[Point], reasons: Mapping[Path, str]) -> None:
    """Log a line for each press and reason.

    Raises `UserError` with the first of them if nothing else was asked for.
    """
    lines = in_lines(points, reasons)
    if lines and len(reasons) == len(points):
        more = f" (and {len(lines) - 1} more such)" if len(lines) > 1 else ""
        raise UserError(f"{lines[0]}{more}; choose another press or model (kvx presses lists them)")
    for line in lines:
        log.warning("run: %s", line)
