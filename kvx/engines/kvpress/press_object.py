"""A press that somebody made: can it be guarded, and copies of it at any budget."""

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from kvpress import BasePress, ObservedAttentionPress

from kvx.engines.kvpress.parts import DECODING, MASKING, parts_of
from kvx.errors import ArgumentError, first_line, shown

INSTEAD = "use an evicting press such as SnapKVPress, KnormPress or ExpectedAttentionPress"


@dataclass(frozen=True)
class ObjectPress:
    """Copies of `press`, with the compression ratio it was given or another budget's.

    A press keeps state on itself, so none is used twice and the user's own never.
    """

    press: Any
    budget: float | None = None

    def build(self) -> Any | None:
        """A new kvpress press; None where nothing is dropped."""
        ratio = self.press.compression_ratio if self.budget is None else 1.0 - self.budget
        if ratio == 0.0:
            return None
        press = deepcopy(self.press)
        if self.budget is not None:
            press.compression_ratio = ratio
        return press

    def at(self, budget: float) -> "ObjectPress":
        return replace(self, budget=budget)

    @property
    def reads_weights(self) -> bool:
        """Whether the press may read attention weights; kvpress's own that do not refuse them."""
        return not type(self.press).__module__.startswith("kvpress.") or any(
            isinstance(part, ObservedAttentionPress) for part in parts_of(self.press)
        )

    @property
    def method_key(self) -> str | None:
        """None: whether the ratio changes its scores is not known of a press of somebody's."""
        return None

    @property
    def nominal(self) -> float:
        """The budget it was made with."""
        return round(1.0 - float(self.press.compression_ratio), 12)


def object_press(press: Any) -> ObjectPress:
    """`press`, checked. Raises `ArgumentError` saying why it cannot be guarded."""
    if not isinstance(press, BasePress):
        raise ArgumentError(f"press={shown(press)}: is not a kvpress press object; {INSTEAD}")
    for part in parts_of(press):
        _check_kind(part)
    name = type(press).__name__
    try:
        ratio = float(press.compression_ratio)
    except (AssertionError, AttributeError, TypeError, ValueError):
        raise ArgumentError(
            f"press={name}: has no compression_ratio, so no budget; {INSTEAD}"
        ) from None
    if not 0 <= ratio < 1:
        raise ArgumentError(f"press={name}: compression_ratio={ratio}: must be in [0, 1)")
    try:
        deepcopy(press).compression_ratio = 0.5
    except Exception as error:  # noqa: BLE001  AttributeError, or what a user's setter raises
        raise ArgumentError(
            f"press={name}: its budget cannot be raised ({first_line(error)}); {INSTEAD}"
        ) from None
    return ObjectPress(press)


def _check_kind(press: Any) -> None:
    name = type(press).__name__
    if isinstance(press, MASKING):
        raise ArgumentError(
            f"press={name}: hides entries and evicts none, so there is nothing that could come "
            f"back; {INSTEAD}"
        )
    if isinstance(press, DECODING):
        raise ArgumentError(
            f"press={name}: also drops what was generated, which a guard recomputes and keeps; "
            f"{INSTEAD}"
        )
    for method in ("__call__", "forward_hook"):
        if getattr(type(press), method) is not getattr(BasePress, method):
            raise ArgumentError(
                f"press={name}: has a {method} of its own, which may change the forward pass: what "
                f"it drops is not known to be the full cache's; {INSTEAD}"
            )
