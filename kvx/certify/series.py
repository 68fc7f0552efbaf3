"""Which points of an experiment are one curve: what a certificate is of."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvx.analyze.naming import told_apart
from kvx.config.certify import CertifyConfig
from kvx.config.controller import RECORD
from kvx.errors import UserError
from kvx.identity.hashing import digest
from kvx.identity.user_code import press_code, press_parameters
from kvx.store.catalog import PointRecord


@dataclass(frozen=True, eq=False)
class Series:
    """Points that differ in their budget alone, the largest first; none is a full cache.

    `press` and `controller` are names, with the parameters that differ where several share one.
    """

    points: tuple[PointRecord, ...]
    press: str
    controller: str

    @property
    def first(self) -> PointRecord:
        return self.points[0]

    @property
    def variant_id(self) -> str:
        return str(self.first.info["variant_id"])

    @property
    def file_name(self) -> str:
        """What tells it from the other series of its variant."""
        info = self.first.info
        parts = [self.press]
        parts += [self.controller] if self.controller != "none" else []
        parts += [f"seed{info['seed']}"] if info["seed"] else []
        parts += ["tokens"] if info["budget_kind"] == "tokens" else []
        return "-".join(re.sub(r"[^\w.=]+", "_", part).strip("_") for part in parts)


def controller_of(config: dict[str, Any]) -> dict[str, Any]:
    """A controller as it is stored, by the fields that differ from `RECORD`.

    Of `kind: none` only the name counts; what `kvx.points.controller_identity` is to a point.
    """
    if config.get("kind", RECORD["kind"]) == RECORD["kind"]:
        return {"name": config["name"]}
    return {k: v for k, v in config.items() if k not in RECORD or v != RECORD[k]}


def steering_of(point: PointRecord) -> dict[str, Any]:
    """What must be the same wherever a point's controller is to do the same again.

    `guard` is how it acts (`point.json` has it for guarded points): `kvx.points.guard_identity`.
    """
    guard = point.info.get("guard")
    return {
        **controller_of(point.info["config"]["controller"]),
        **({"guard": guard} if guard else {}),
    }


def all_series(points: Sequence[PointRecord]) -> list[Series]:
    """Every curve below the full cache: by variant, press, controller, seed and kind of budget."""
    names = {node: {p.id: str(p.info[node]) for p in points} for node in ("press", "controller")}
    presses = told_apart(names["press"], {p.id: press_parameters(p.info) for p in points})
    controllers = told_apart(names["controller"], {p.id: steering_of(p) for p in points})
    found: dict[tuple[Any, ...], list[PointRecord]] = defaultdict(list)
    for point in points:
        info = point.info
        press, controller = info["config"]["press"], steering_of(point)
        if point.is_full_cache or press["method"] is None:
            continue
        key = (
            info["variant_id"], digest([press, press_code(info)]), digest(controller), info["seed"],
            info["budget_kind"],
        )  # fmt: skip
        found[key].append(point)
    made = [
        Series(
            tuple(sorted(group, key=lambda point: point.budget_asked, reverse=True)),
            presses[group[0].id],
            controllers[group[0].id],
        )
        for group in found.values()
    ]
    return sorted(made, key=lambda s: (s.variant_id, s.file_name))


def chosen(series: Sequence[Series], settings: CertifyConfig) -> list[Series]:
    """Those of `certify.press` and `certify.controller`.

    A name stands for all its parameters. Raises `UserError` where none is left.
    """
    kept = list(series)
    if not kept:
        raise UserError("no compressed point to certify; run a press at budgets below 1.0 too")
    for field in ("press", "controller"):
        asked = getattr(settings, field)
        if asked is None:
            continue
        there = ", ".join(sorted({getattr(s, field) for s in kept}))
        kept = [s for s in kept if asked in (s.first.info[field], getattr(s, field))]
        if not kept:
            raise UserError(f"certify.{field}={asked}: not in this experiment; it has {there}")
    return kept
