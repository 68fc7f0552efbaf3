"""Which presses get the model's own queries, and what is said of points that rank otherwise."""

import logging
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from kvx.config.press_choices import PressNeed, Queries
from kvx.config.press_config import PressConfig
from kvx.engines.base import Ranked
from kvx.engines.kvpress.agreement import agreement, agreement_of, recomputed
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.press import instantiate, queries_of
from kvx.engines.kvpress.queries import ModelQueries
from kvx.engines.kvpress.widths import fit
from kvx.points import Point

log = logging.getLogger(__name__)

TOLD_TOKENS = 1 << 20  # a prompt that every budget of less than all compresses

_known: WeakKeyDictionary[Any, dict[tuple[str, bool], str | None]] = WeakKeyDictionary()


class PressQueries(ModelQueries):
    """Serves those presses of a prefill that rank by another attention than the model's."""

    def serve(self, press: Any) -> None:
        """Their widths fit; queries are kvpress's where they are the model's, or are asked for."""
        if press is None:
            return
        if queries_of(press) is Queries.model and recomputed(press):
            found = agreement_of(self.model)
            if found.seen and found.against(press) is not None:
                super().serve(press)
        fit(press)


def ranked(loaded: LoadedModel, point: Point, n_tokens: int) -> Ranked | None:
    """How a point ranks a prompt of `n_tokens`, where kvpress's way is not the model's."""
    press = point.config.press
    if press.method is None or point.compression_ratio(n_tokens) == 0:
        return None
    reason = _reason(loaded, press, PressNeed.attention_weights in press.needs)
    if reason is None:
        return None
    return Ranked(reason, press.queries is Queries.model and agreement(loaded).seen)


def _reason(loaded: LoadedModel, config: PressConfig, weights: bool) -> str | None:
    known, key = _known.setdefault(loaded.model, {}), (repr(config.method), weights)
    if key not in known:
        press = instantiate(config, 0.5)
        found = recomputed(press, weights)
        known[key] = agreement(loaded).against(press, weights) if found else None
    return known[key]


def tell(loaded: LoadedModel, points: Sequence[Point]) -> None:
    """Say once per press that kvpress's queries are not this model's, and which are used."""
    told: set[tuple[str, Queries]] = set()
    for point in points:
        press, found = point.config.press, ranked(loaded, point, TOLD_TOKENS)
        key = (press.name, press.queries)
        if found is None or key in told:
            continue
        told.add(key)
        if found.adapted:
            log.info("run: press=%s ranks by the model's own queries: %s", press.name, found.reason)
        else:
            log.warning("run: press=%s is not its method here: %s", press.name, found.reason)
