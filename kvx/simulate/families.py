"""The controllers that a simulation replays, and the families that its front sweeps over."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kvx.config.controller import ControllerConfig
from kvx.config.controller_options import named
from kvx.config.schema import Config
from kvx.errors import UserError
from kvx.guard.controllers import Gate, Hazard, Random, RuleBased
from kvx.guard.controllers.base import Policy, Thresholds, check, policy
from kvx.guard.own_code import check_code
from kvx.learning.simulation import Trace, matching_rate, thresholds

Policies = list[list[Policy]]  # [repeats][traces]
TRIGGER_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
FORECAST, FORECAST_LOOP = "forecast", "forecast + loop detector"
ENTROPY, GATE, CHANCE = "entropy CUSUM", "probe gate", "random"


@dataclass(frozen=True)
class Entry:
    """A controller of the table, or a threshold of a sweep, with a policy for each trace.

    Random controllers have several policies.
    """

    name: str
    kind: str
    policies: Policies
    threshold: float | None = None


def chosen(config: Config) -> list[ControllerConfig]:
    """The controllers to simulate: `simulate.controllers`, and the one given as `controller=`.

    Raises `UserError` for an option that does not exist or makes no sense.
    """
    given = config.controller
    try:
        found = {name: named(name) for name in config.simulate.controllers}
    except UserError as error:
        raise UserError(f"simulate.controllers: {error}") from None
    if given.acts:
        found[given.name] = given
    if not found:
        raise UserError("simulate.controllers: name at least one controller")
    for controller in found.values():
        check(controller)
        check_code(controller)
    return [c for controller in found.values() for c in _with_parts(controller)]


def _with_parts(controller: ControllerConfig) -> list[ControllerConfig]:
    """A controller, and each of two rules alone where it has two."""
    own = [controller]
    if isinstance(controller, RuleBased) and None not in (
        controller.repetition_count,
        controller.entropy_cusum_nats,
    ):
        name = controller.name
        repetition = replace(controller, name=f"{name}, repetition alone", entropy_cusum_nats=None)
        entropy = replace(controller, name=f"{name}, entropy alone", repetition_count=None)
        own += [repetition, entropy]
    return own


def entries(
    controllers: Sequence[ControllerConfig],
    cards: Sequence[Thresholds | None],
    repeats: int,
    rate: Callable[[Sequence[Entry]], float],
) -> list[Entry]:
    """What is replayed for each controller; random ones come last.

    `cards` [traces] are of models that have not seen the trace. `rate` gives a random controller
    without a rate one that matches the other entries. A controller with a model has two more
    entries: without its gate, and with the forecast alone, without the loop detector too.
    """
    found: list[Entry] = []
    for controller in sorted(controllers, key=lambda c: isinstance(c, Random)):
        if isinstance(controller, Random):
            own = controller
            if controller.rate is None:
                own = replace(controller, rate=rate(found))
            found.append(Entry(own.name, own.kind, _random(own, len(cards), repeats)))
            continue
        found.append(_entry(controller, cards))
        if not isinstance(controller, Hazard):
            continue
        gated = any(p.config.prefill_gate_nats is not None for p in found[-1].policies[0])
        open_ = replace(controller, card_gate=False, prefill_gate_nats=None)
        if gated:
            found.append(_entry(replace(open_, name=f"{controller.name}, no gate"), cards))
        if gated or controller.on_loop:
            alone = replace(open_, name=f"{controller.name}, forecast alone", on_loop=False)
            found.append(_entry(alone, cards))
    return found


def _entry(controller: ControllerConfig, cards: Sequence[Thresholds | None]) -> Entry:
    known = {id(card): policy(controller, card) for card in {id(c): c for c in cards}.values()}
    return Entry(controller.name, controller.kind, [[known[id(card)] for card in cards]])


def _random(controller: Random, n: int, repeats: int) -> Policies:
    seeds = range(controller.seed, controller.seed + repeats)
    return [[policy(replace(controller, seed=seed))] * n for seed in seeds]


def sweeps(
    controllers: Sequence[ControllerConfig],
    match: str,
    traces: Sequence[Trace],
    n: int,
    repeats: int,
) -> list[Entry]:
    """Thresholds of the families that `controllers` have (forecast, entropy sum, chance), and of
    the probe before the first token.

    The forecast is that of the controller `match`, or of the first controller with one.
    """
    steps: list[Entry] = []

    def add(family: str, threshold: float, controller: ControllerConfig) -> None:
        steps.append(Entry(family, family, [[policy(controller)] * len(traces)], threshold))

    hazards = sorted(
        (c for c in controllers if isinstance(c, Hazard)), key=lambda c: c.name != match
    )
    rules = [c for c in controllers if isinstance(c, RuleBased)]
    rules = [c for c in rules if c.entropy_cusum_nats is not None]
    chances = [c for c in controllers if isinstance(c, Random)]
    for hazard in hazards[:1]:
        for family, on_loop in ((FORECAST, False), (FORECAST_LOOP, True)):
            for tau in thresholds([t.hazard_peak for t in traces], n):
                add(family, tau, replace(hazard, tau_high=tau, tau_low=None, on_loop=on_loop))
    for rule in rules[:1]:
        for nats in thresholds([t.cusum_peak(rule.entropy_reference_nats) for t in traces], n):
            if nats > 0:
                add(ENTROPY, nats, replace(rule, repetition_count=None, entropy_cusum_nats=nats))
    for nats in thresholds([t.probe_nats for t in traces], n):
        add(GATE, nats, Gate(name=GATE, prefill_gate_nats=max(0.0, nats)))
    for chance in chances[:1]:
        for share in TRIGGER_SHARES:
            rate = matching_rate(share, [t.n_tokens for t in traces])
            own = _random(replace(chance, rate=rate), len(traces), repeats)
            steps.append(Entry(CHANCE, CHANCE, own, rate))
    return steps
