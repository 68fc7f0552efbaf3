"""A point of a sweep and its content-addressed identity."""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kvx.config import conditions
from kvx.config.controller import RECORD
from kvx.config.guard import GuardConfig, Shadow
from kvx.config.identity import is_guarded, resolved, unlabelled
from kvx.config.measures import Measure
from kvx.config.numbers import exact
from kvx.config.press_choices import Queries
from kvx.config.schema import BudgetConfig, BudgetKind, Config, DecodingConfig
from kvx.data.manifest import Entry, Manifest
from kvx.data.model_attention import has_plain_layers, is_as_recomputed, recomputes
from kvx.data.tokenizer import model_hash
from kvx.guard.own_code import controller_sources
from kvx.identity import hazard_files, user_code
from kvx.identity.hashing import digest

# what distinguishes the points of a variant, and where they are stored
OWN = ("experiment_name", "press", "budget", "controller", "guard", "seed")
# kvpress's press that moves kept entries to the first positions
PACKING = "KeyRerotationPress"
SHARED = tuple(f.name for f in dataclasses.fields(Config) if f.name not in OWN)


def controller_identity(config: Config) -> dict[str, Any]:
    """The fields of the controller that differ from `RECORD`.

    A field that is added later changes no id. Of a controller that never acts only the name counts.
    """
    controller = config.controller
    plain = resolved(controller)
    if not controller.acts:
        return {"name": plain["name"]}
    if not plain["card_gate"] or plain["prefill_gate_nats"] is not None:
        plain["gate_point"] = None  # not read
    return {n: value for n, value in plain.items() if n not in RECORD or value != RECORD[n]}


def guard_identity(config: Config) -> dict[str, Any]:
    """What of `guard` can change results: nothing without a controller, else what `unsaid_guard`
    does not say.

    Where the full KV comes from does not, as long as there is any; nor does what a stream's reader
    sees. A hazard model is known by its files, wherever they lie. Raises `UserError` if it is
    needed and not there.
    """
    if not is_guarded(config):
        return {}
    plain, default = resolved(config.guard), unsaid_guard()
    for name in ("model", "shadow"):
        del plain[name]
    found = {name: value for name, value in plain.items() if value != default[name]}
    if config.controller.from_start:
        found.pop("let_go", None)  # it keeps what it has
    if config.guard.shadow is Shadow.none:
        found["shadow"] = Shadow.none.name
    if config.controller.needs_hazard:
        found["model"] = hazard_files.identity(hazard_files.folder_of(config.guard.model))
    return found


def unsaid_guard() -> dict[str, Any]:
    """What `guard_identity` leaves out: the defaults, and of fields that came later what was done
    before there were any.
    """
    return {**resolved(GuardConfig()), "let_go": False}


def told_guard(identity: dict[str, Any]) -> dict[str, Any]:
    """Of a `guard_identity`, what is not as it is by default."""
    default = resolved(GuardConfig())
    known = unsaid_guard() | identity
    return {name: value for name, value in known.items() if value != default.get(name)}


def budget_label(budget: BudgetConfig) -> str:
    """`0.5`, or `256t` for a number of tokens: for people. Code compares `BudgetConfig.key`."""
    return f"{budget.tokens}t" if budget.kind is BudgetKind.tokens else exact(budget.ratio)


@dataclass(frozen=True)
class Point:
    """One cell of a sweep: a configuration and the manifest it runs."""

    config: Config
    manifest: Manifest
    manifest_dir: Path

    @cached_property
    def variant_id(self) -> str:
        """Identity of what makes points comparable.

        That is everything but press, budget, controller and seed.
        """
        fields = resolved(self.config)
        for name in OWN:
            del fields[name]
        # the manifest stands for the data, its hash for the model; both are free of paths
        fields["dataset"] = self.manifest.identity
        model = self.config.model
        fields["model"] = {**unlabelled(model), "hash": model_hash(model)}
        if self.config.engine.name == "kvpress" and not has_plain_layers(model):
            fields["layers"] = "each of its own kind"  # once presses compressed windows too
        if code := user_code.identity_of(user_code.sources_of(fields["engine"])):
            fields["sources"] = code
        return digest(fields)

    @cached_property
    def id(self) -> str:
        c = self.config
        budget = (
            {"tokens": c.budget.tokens}
            if c.budget.kind is BudgetKind.tokens
            else {"ratio": c.budget.ratio}
        )
        own = [self.variant_id, resolved(c.press), budget, controller_identity(c), c.seed]
        name = f"{c.press.name}-{budget_label(c.budget)}"
        if is_guarded(c):
            own.append(guard_identity(c))
            name += f"-{c.controller.name}"
        if code := user_code.identity_of(self.press_sources | self.controller_sources):
            own.append({"sources": code})
        if self._ranks_by_other_queries:
            own.append("ranked by the model's own queries")  # once by those that kvpress makes
        if PACKING in json.dumps(resolved(c.press.method or {})):
            own.append("decoded behind packed keys")  # once it was decoded at the prompt's length
        return f"{name}-{digest(own)}"

    @property
    def _ranks_by_other_queries(self) -> bool:
        """Whether its press ranks by queries that kvpress would make otherwise."""
        c = self.config
        if c.press.queries is not Queries.model or not recomputes(c.press.method):
            return False
        return c.engine.name == "kvpress" and not self._as_recomputed

    @cached_property
    def _as_recomputed(self) -> bool:
        return is_as_recomputed(self.config.model)

    @cached_property
    def press_sources(self) -> dict[str, str]:
        """The identity of the press's code, and of what it wraps, when this was planned."""
        return user_code.sources_of(self.config.press.method)

    @cached_property
    def controller_sources(self) -> dict[str, str]:
        """The identity of the code of a user's controller when this was planned."""
        return controller_sources(self.config.controller)

    @cached_property
    def sources(self) -> dict[str, str]:
        """The identity of the code of each class that the configuration names."""
        c = self.config
        others = user_code.sources_of([c.dataset.source, resolved(c.engine)])
        return self.press_sources | self.controller_sources | others

    def beside(self, config: Config) -> "Point":
        """Another point of the same variant: `config` has the very same `SHARED` parts."""
        point = Point(config, self.manifest, self.manifest_dir)
        for name in ("variant_id", "_as_recomputed"):  # not hashed again for each of thousands
            vars(point)[name] = getattr(self, name)
        return point

    @cached_property
    def dir(self) -> Path:
        return experiment_dir(self.config) / "points" / self.id

    @property
    def guarded(self) -> bool:
        """Whether a controller follows its responses."""
        return is_guarded(self.config)

    @property
    def wants_answers(self) -> bool:
        return Measure.quality in self.config.measure.parts

    @property
    def wants_latency(self) -> bool:
        return Measure.latency in self.config.measure.parts

    @property
    def wants_fidelity(self) -> bool:
        return Measure.fidelity in self.config.measure.parts

    @cached_property
    def latency_items(self) -> list[tuple[Entry, int]]:
        """The latency measurements: (entry, repeat) of the first `latency.n_per_bin` of each bin.

        Empty unless the configuration asks for latency. All entries come before any is repeated.
        """
        if not self.wants_latency:
            return []
        settings = self.config.latency
        chosen = self._first(settings.n_per_bin)
        return [(entry, repeat) for repeat in range(settings.repeats) for entry in chosen]

    @cached_property
    def fidelity_entries(self) -> list[Entry]:
        """What is compared with the full cache: the first `fidelity.n_per_bin` of each bin.

        Empty unless the configuration asks for it.
        """
        if not self.wants_fidelity:
            return []
        n = self.config.fidelity.n_per_bin
        return list(self.manifest.entries) if n is None else self._first(n)

    def _first(self, n_per_bin: int) -> list[Entry]:
        seen, chosen = Counter[int](), []
        for entry in self.manifest.entries:
            seen[entry.bin] += 1
            if seen[entry.bin] <= n_per_bin:
                chosen.append(entry)
        return chosen

    def kept_tokens(self, n_tokens: int) -> int:
        """Entries per head and layer that the budget asks to keep of `n_tokens`.

        The rounding is kvpress's.
        """
        return max(1, int(n_tokens * (1 - self.compression_ratio(n_tokens))))

    def kept_share(self, n_tokens: int) -> float:
        """The share of the entries of `n_tokens` that the budget asks to keep."""
        return 1.0 - self.compression_ratio(n_tokens)

    def compression_ratio(self, n_tokens: int) -> float:
        """kvpress's `compression_ratio` (0 = keep all) for a prompt of `n_tokens`."""
        budget = self.config.budget
        if self.config.press.method is None:
            return 0.0
        if budget.kind is BudgetKind.ratio:
            return 1.0 - budget.ratio
        assert budget.tokens is not None
        if budget.tokens >= n_tokens:
            return 0.0
        return 1.0 - (budget.tokens + 0.5) / n_tokens  # the half guards against float rounding

    def degenerate_reason(self, n_tokens: int, measured: float | None = None) -> str | None:
        """Why this press acts as another method for a prompt of `n_tokens`; None if it does not.

        `measured` are the entries per head that it kept, where that is known. Raises `UserError`
        for a condition that cannot be evaluated.
        """
        press, ratio = self.config.press, self.compression_ratio(n_tokens)
        kept, least = self.kept_tokens(n_tokens), press.degenerate_at_tokens
        if kept == n_tokens:
            return None
        fewest = kept if measured is None else min(float(kept), measured)
        if fewest <= least:
            return f"keeps {fewest:g} entries, {press.name} needs more than {least}"
        return conditions.reason(press, n_tokens, n_tokens * (1 - ratio), kept)


@dataclass(frozen=True)
class Request:
    """One example asked at one point."""

    point: Point
    entry: Entry

    @property
    def id(self) -> str:
        return request_id(self.point.id, self.entry.example_id)

    @property
    def max_new_tokens(self) -> int:
        """The row's own limit where the data has one, else the run's."""
        own = self.entry.max_new_tokens
        return self.point.config.decoding.max_new_tokens if own is None else own

    @property
    def decoding(self) -> DecodingConfig | None:
        """Its own decoding, if it differs from the point's other requests."""
        own = self.entry.max_new_tokens
        if own is None:
            return None
        return dataclasses.replace(self.point.config.decoding, max_new_tokens=own)


def request_id(point_id: str, example_id: str) -> str:
    return f"{point_id}/{example_id}"


def experiment_dir(config: Config) -> Path:
    return Path(config.paths.output) / "runs" / config.experiment_name


def by_experiment(points: Iterable[Point]) -> dict[Path, list[Point]]:
    """The points by their experiment's directory."""
    found: dict[Path, list[Point]] = {}
    for point in points:
        found.setdefault(experiment_dir(point.config), []).append(point)
    return found
