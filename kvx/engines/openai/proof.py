"""Whether the asked budget was applied: the server's accounting, or a probe before the start."""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kvx.config.identity import resolved
from kvx.config.numbers import exact
from kvx.config.schema import BudgetConfig, PressConfig
from kvx.data.example import Example
from kvx.engines.base import BudgetProof, PointWork, kept_as_asked
from kvx.engines.openai.body import Route, route
from kvx.engines.openai.fault import line
from kvx.engines.openai.reply import Accounting, Reply
from kvx.points import Point, Request, budget_label

# log-probs of one prompt asked twice differ by less than this on most servers
NOISE = 1e-3
Ask = Callable[[Request, Example], Awaitable[Reply]]


def contradiction(request: Request, said: Accounting, split_is_ours: bool) -> str | None:
    """What in the server's accounting is not what was asked; None if all of it is.

    With `split_is_ours` the server was told which part of the prompt to compress.
    """
    point, kv = request.point, said.kv
    press, tolerance = point.config.press, point.config.press.tolerance_tokens
    asked = point.config.budget.amount
    full_cache = point.config.budget.is_full
    if not full_cache and said.press != press.name:
        return f"press={press.name} was asked for, the server used {said.press}"
    if not full_cache and (other := _other_parameters(press, said.method)) is not None:
        return f"press={press.name}: {other}; give the server the same press.method"
    if said.budget_kind != point.config.budget.kind.name or abs(said.budget - asked) > 1e-9:
        return f"budget {exact(asked)} was asked for, the server says {exact(said.budget)}"
    if kv.bytes_physical <= 0:
        return "the server says that nothing was in its cache"
    full = round(kv.entries_physical * kv.bytes_full / kv.bytes_physical)
    compressed = request.entry.compressed_tokens
    if split_is_ours and abs(full - compressed) > tolerance:
        return f"{compressed} tokens were to be compressed, the server compressed {full}"
    kept = point.kept_tokens(full)
    if kept_as_asked(press, kept, kv.entries_effective) is None:
        return (
            f"press={press.name} was asked to keep {kept} KV entries per head and the server kept "
            f"{kv.entries_effective:g}; the budget is not what its label says"
        )
    return None


def of_accounting(request: Request, said: Accounting) -> BudgetProof:
    """How an accounting that does not contradict what was asked proves the budget."""
    kv = said.kv
    full = round(kv.entries_physical * kv.bytes_full / kv.bytes_physical)
    kept = request.point.kept_tokens(full)
    found = kept_as_asked(request.point.config.press, kept, kv.entries_effective)
    return BudgetProof.BY_METHOD if found is BudgetProof.BY_METHOD else BudgetProof.SERVER


def _other_parameters(press: PressConfig, said: Any) -> str | None:
    """How the server's press differs from ours; None if it does not, or does not tell."""
    if not isinstance(said, Mapping):
        return None
    ours = json.loads(json.dumps(resolved(press.method or {})))
    for name in sorted({*ours, *said}):
        if ours.get(name) != said.get(name):
            return line(f"{name} is {ours.get(name)} here and {said.get(name)} at the server")
    return None


@dataclass(frozen=True)
class Finding:
    """What a probe found for one press, and what a user should hear of it."""

    proof: BudgetProof
    says: str | None = None


async def probe(work: Sequence[PointWork], ask: Ask) -> Finding:
    """Ask the longest prompt of comparable points at their highest and lowest budget.

    The highest is asked twice, which shows how much answers vary by themselves. Raises `Fault`.
    """
    pairs = [pair for item in work for pair in item.requests]
    request, example = max(pairs, key=lambda pair: pair[0].entry.prompt_tokens)
    compressed = request.entry.compressed_tokens
    ordered = sorted((w.point for w in work), key=lambda point: point.kept_tokens(compressed))
    low, high = ordered[0], ordered[-1]
    way = route(low)
    if not way.tells_budgets:
        return Finding(BudgetProof.NOT_SENT, _not_sent(low, way))
    if not way.by_endpoint:  # any budget can be asked for
        config = replace(high.config, budget=BudgetConfig())
        high = Point(config, high.manifest, high.manifest_dir)
    first = await ask(Request(high, request.entry), example)
    if first.accounting is not None:
        return Finding(BudgetProof.NONE)  # each response is judged by its own
    if low.kept_tokens(compressed) == high.kept_tokens(compressed):
        return Finding(BudgetProof.PROBE_UNCLEAR)  # nothing to compare with
    again = await ask(Request(high, request.entry), example)
    other = await ask(Request(low, request.entry), example)
    return compare(first, again, other, budget_label(high.config.budget), low)


def compare(first: Reply, again: Reply, other: Reply, high: str, low: Point) -> Finding:
    """Judge two replies at the highest budget and one at the lowest."""
    name, lowest = low.config.press.name, budget_label(low.config.budget)
    between = f"press={name}: at budgets {high} and {lowest}"
    if other.trace is None or again.trace is None or first.trace is None:
        if other.text != again.text and first.text == again.text:
            return Finding(BudgetProof.PROBE_DIFFERS, f"{between} the server's texts differ")
        return Finding(
            BudgetProof.PROBE_UNCLEAR,
            f"{between} the server gives {'the same' if other.text == again.text else 'a'} text "
            "and no log-probs, so nothing is known",
        )
    noise, change = distance(first, again), distance(again, other)
    if change <= NOISE:
        return Finding(
            BudgetProof.PROBE_SAME,
            f"{between} the server gives the same tokens and log-probs: IT IGNORES THE BUDGET, and "
            "what differs between these points is only their label",
        )
    if change <= 2 * noise:
        return Finding(
            BudgetProof.PROBE_UNCLEAR,
            f"{between} the server's log-probs differ no more than between two equal requests",
        )
    return Finding(
        BudgetProof.PROBE_DIFFERS,
        f"{between} the server's answers differ, so the budget has an effect; how much is kept is "
        "not known",
    )


def distance(one: Reply, other: Reply) -> float:
    """The largest difference of log-probs; infinite where the tokens differ."""
    if one.tokens != other.tokens or one.trace is None or other.trace is None:
        return float("inf")
    pairs = list(zip(one.trace.logprob, other.trace.logprob, strict=True))
    for mine, theirs in zip(
        one.trace.top_logprobs or (), other.trace.top_logprobs or (), strict=True
    ):
        pairs += zip(mine, theirs, strict=False)
    return max((abs(a - b) for a, b in pairs), default=0.0)


def _not_sent(point: Point, way: Route) -> str:
    return (
        f"press={point.config.press.name}: THE BUDGET IS NOT SENT to {way.url}: set "
        "engine.endpoints or engine.extra_body (docs/openai.md)"
    )


def comparable(work: Sequence[PointWork]) -> list[list[PointWork]]:
    """Groups of points in which only the budget differs for the server.

    Endpoints are told apart by budget alone, requests by press too.
    """
    groups: dict[str, list[PointWork]] = {}
    for item in work:
        if item.requests:
            name = "" if route(item.point).by_endpoint else item.point.config.press.name
            groups.setdefault(name, []).append(item)
    return list(groups.values())
