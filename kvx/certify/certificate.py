"""A certificate as a value and as a JSON file: what kvx.certify writes and kvx.serve reads."""

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from kvx.analyze.columns import ALL_BINS
from kvx.errors import UserError
from kvx.identity.hashing import digest

FORMAT = 4
READABLE = (3, 4)  # of 3, every field that came later is at its default


class Verdict(StrEnum):
    CERTIFIED = "certified"
    NOT_CERTIFIED = "not certified"  # the first of its sequence: testing stops here
    NOT_TESTED = "not tested"
    LEFT_OUT = "left out"  # its answers prove nothing about its budget


@dataclass(frozen=True)
class Tested:
    """One budget: losses that add up to `total_loss` prompts among `n`, and the verdict.

    `n_examples` is set where the risk is a mean over examples: `total_loss` is theirs then.

    With a controller, `mean_budget` is the share of the prompt's entries that was on the device, a
    mean over all decoded steps of `n_responses`.
    """

    budget: str
    ratio: float | None
    tokens: int | None
    point_id: str
    n: int
    total_loss: float | None
    p: float | None
    verdict: Verdict
    reason: str | None = None
    mean_budget: float | None = None
    n_responses: int | None = None
    n_examples: int | None = None

    @property
    def mean_loss(self) -> float | None:
        n = self.n if self.n_examples is None else self.n_examples
        return (self.total_loss or 0.0) / n if n else None


@dataclass(frozen=True)
class DeviceUse:
    """Mean device budgets of a certificate's groups, the `lowest` and the `highest`."""

    lowest: float
    highest: float
    n_responses: int


@dataclass(frozen=True)
class Group:
    """All prompts (bin -1), or those of one length bin; edges in tokens of the context.

    `test` is the bound of its p-values. `largest_cluster` is the number of examples of the largest
    cluster, where the risk is a mean over examples.
    """

    bin: int
    low_tokens: int
    high_tokens: int
    n: int
    n_left_out: int
    tests: tuple[Tested, ...]
    test: str | None = None
    largest_cluster: int | None = None


@dataclass(frozen=True)
class Certificate:
    """What was certified, for which setup, and from which inputs.

    `model`, `press` and `controller` hold what must be the same where the certificate is used;
    `setup` the conditions under which the answers came about. `delta_per_group` is delta shared
    among bins. `net`: gains made up for losses. `average`: what the risk is a mean over.
    `order_seed` is that of the permutation in which bets were placed; None where the order does not
    matter. `code` is the digest of the kvx that made it.
    """

    experiment: str
    model: dict[str, Any]
    press: dict[str, Any]
    controller: dict[str, Any]
    setup: dict[str, Any]
    loss: str
    metric: str | None
    alpha: float
    delta: float
    delta_per_group: float
    test: str
    curves: int
    groups: tuple[Group, ...]
    kvx: str
    code: str
    inputs: str
    net: bool = False
    average: str = "clusters"
    order_seed: int | None = None

    @cached_property
    def budget(self) -> Tested | None:
        """The smallest budget that is certified in every group; None if there is none."""
        common = set.intersection(
            *({t.budget for t in g.tests if t.verdict is Verdict.CERTIFIED} for g in self.groups)
        )
        return next((t for t in reversed(self.groups[0].tests) if t.budget in common), None)

    @property
    def device_use(self) -> DeviceUse | None:
        """The device use at the certified budget; None without a controller."""
        label = self.budget and self.budget.budget
        rows = [t for g in self.groups for t in g.tests if t.budget == label]
        measured = [t.mean_budget for t in rows if t.mean_budget is not None]
        if not measured:
            return None
        return DeviceUse(min(measured), max(measured), sum(t.n_responses or 0 for t in rows))

    @cached_property
    def digest(self) -> str:
        """Identity of the whole content."""
        return digest(self._body(), 16)

    def to_json(self) -> str:
        """With the chosen budget and a digest, so that a changed file is noticed."""
        body = {**self._body(), "digest": self.digest}
        return json.dumps(body, indent=1, ensure_ascii=False) + "\n"

    def _body(self) -> dict[str, Any]:
        chosen: dict[str, Any] | None = None
        if (best := self.budget) is not None:
            chosen = {"label": best.budget, "ratio": best.ratio, "tokens": best.tokens}
            if (used := self.device_use) is not None:
                chosen["mean_budget"] = dataclasses.asdict(used)
        return {"kvx_certificate": FORMAT, "budget": chosen, **dataclasses.asdict(self)}


def whole(group: Group) -> bool:
    return group.bin == ALL_BINS


def read(path: Path) -> Certificate:
    """The certificate in `path`. Raises `UserError` if it cannot be read or was changed."""

    def refused(reason: str, then: str = "run kvx.certify again") -> UserError:
        return UserError(f"certificate={path}: {reason}; {then}")

    other = "give a JSON file of kvx.certify"
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise refused(f"cannot be read ({reason})", other) from None
    if not isinstance(found, dict) or "kvx_certificate" not in found:
        raise refused("not a certificate", other)
    if (form := found["kvx_certificate"]) not in READABLE:
        raise refused(f"its format is {form}, this kvx reads {' and '.join(map(str, READABLE))}")
    if found.pop("digest", None) != digest(found, 16):
        raise refused("was changed after kvx.certify wrote it")
    del found["kvx_certificate"], found["budget"]
    groups = tuple(
        Group(
            **{
                **g,
                "tests": tuple(
                    Tested(**{**t, "verdict": Verdict(t["verdict"])}) for t in g["tests"]
                ),
            }
        )
        for g in found.pop("groups")
    )
    return Certificate(**found, groups=groups)


def inputs_of(path: Path) -> str | None:
    """What an existing certificate was made from; None if there is none that can be read."""
    try:
        return read(path).inputs
    except UserError:
        return None
