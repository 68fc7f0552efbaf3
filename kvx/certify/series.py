"""The curves of an experiment: the points that one certificate covers."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kvx.analyze.naming import told_apart
from kvx.config.certify import CertifyConfig
from kvx.config.controller import RECORD
from kvx.config.controller_files import TARGET
from kvx.errors import UserError
from kvx.guard.own_code import controller_code
from kvx.identity.hashing import digest
from kvx.identity.user_code import press_code, press_parameters, told
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
        """Differs from that of every other series of its variant."""
        info = self.first.info
        parts = [self.press]
        parts += [self.controller] if self.controller != "none" else []
        parts += [f"seed{info['seed']}"] if info["seed"] else []
        parts += ["tokens"] if info["budget_kind"] == "tokens" else []
        return "-".join(re.sub(r"[^\w.=]+", "_", part).strip("_") for part in parts)


def controller_of(config: dict[str, Any]) -> dict[str, Any]:
    """A stored controller's identity: the fields that differ from `RECORD`.

    Of `kind: none` only the name counts. `kvx.points.controller_identity` is the same for a point.
    """
    if config.get("kind", RECORD["kind"]) == RECORD["kind"] and TARGET not in config:
        return {"name": config["name"]}
    return {k: v for k, v in config.items() if k not in RECORD or v != RECORD[k]}


def steering_of(point: PointRecord) -> dict[str, Any]:
    """What decides what a point's controller does: its fields, and how it acts.

    `code` stands for a class of the user's own. `guard` is how it acts (`point.json` has it for
    guarded points): `kvx.points.guard_identity`.
    """
    info = point.info
    return steering(info["config"]["controller"], controller_code(info), info.get("guard"))


def steering(
    controller: dict[str, Any], code: dict[str, str], guard: dict[str, Any] | None
) -> dict[str, Any]:
    """`steering_of` a controller as it is stored, the identity of its code, and of its guard."""
    return {
        **controller_of(controller),
        **({"code": code} if code else {}),
        **({"guard": guard} if guard else {}),
    }


def all_series(points: Sequence[PointRecord]) -> list[Series]:
    """Every curve below the full cache: by variant, press, controller, seed and kind of budget."""
    names = {node: {p.id: str(p.info[node]) for p in points} for node in ("press", "controller")}
    presses = told_apart(names["press"], {p.id: press_parameters(p.info) for p in points})
    controllers = told_apart(names["controller"], {p.id: _parameters(p) for p in points})
    found: dict[tuple[Any, ...], list[PointRecord]] = defaultdict(list)
    for point in points:
        info = point.info
        press, controller = info["config"]["press"], steering_of(point)
        if point.is_full_cache or press["method"] is None:
            continue
        key = (
            info["variant_id"],
            digest([press, press_code(info)]),
            digest(controller),
            info["seed"],
            info["budget_kind"],
        )
        found[key].append(point)
    made = []
    for group in found.values():
        points_ = tuple(sorted(group, key=lambda point: point.budget_asked, reverse=True))
        made.append(Series(points_, presses[group[0].id], controllers[group[0].id]))
    return sorted(made, key=lambda s: (s.variant_id, s.file_name))


def chosen(series: Sequence[Series], settings: CertifyConfig) -> list[Series]:
    """The series of `certify.press` and `certify.controller`.

    A name stands for all its parameters. Raises `UserError` if none is left.
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


def _parameters(point: PointRecord) -> dict[str, Any]:
    own = steering_of(point)
    return own | ({"code": told(own["code"])} if "code" in own else {})
