"""engine=kvpress: transformers models and kvpress presses in this process.

This package is the only place that knows kvpress.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from kvx.config.schema import Config
from kvx.data.tokenizer import model_hash
from kvx.engines.base import (
    Fidelity,
    LatencyWork,
    Measurement,
    PointFailed,
    PointWork,
    Response,
)
from kvx.engines.kvpress import latency
from kvx.engines.kvpress.account import Account, RowCost
from kvx.engines.kvpress.batch import Batch
from kvx.engines.kvpress.fidelity import Answers, Comparison
from kvx.engines.kvpress.guarded import renew_hazard_models
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.memory import free_for_caches
from kvx.engines.kvpress.model import LoadedModel, load
from kvx.engines.kvpress.press_check import check_on_model, check_press
from kvx.engines.kvpress.press_queries import tell
from kvx.engines.kvpress.progress_hooks import reporting_progress
from kvx.engines.kvpress.sharing import ragged_obstacle
from kvx.errors import NotApplicableError, UserError
from kvx.points import Point, Request

log = logging.getLogger(__name__)

# of the memory that is free at the start; the rest is for activations
CACHE_SHARE = 0.6
# float32 copies of the logits that sampling and signals hold at a step
LOGITS_COPIES = 4


class KVPressEngine:
    """One prefill for every point of an example, all of them decoded together."""

    def __init__(self, config: Config) -> None:
        self.config = config
        renew_hazard_models()

    @cached_property
    def _content(self) -> str:
        return model_hash(self.config.model)

    @property
    def loaded(self) -> LoadedModel:
        """The same model for as long as this engine is used, even if its files change."""
        return load(self.config.model, self._content)

    def check(self, points: Sequence[Point]) -> None:
        for point in points:
            check_press(point)
        # at budget 1.0 no press is made
        pressed = [point for point in points if not point.config.budget.is_full]
        self._check_on_model(pressed)
        self._check_controllers(points)
        with self.loaded.own_attention():
            for point in points:
                self.loaded.set_attention(self.loaded.attention_for(point.config))
        tell(self.loaded, points)
        if self.config.engine.max_cache_gib is None:
            return  # a row larger than what is free runs alone
        account = self.account()
        for point in points:
            longest = max(point.manifest.entries, key=lambda e: e.prompt_tokens)
            account.check(Request(point, longest))

    def _check_on_model(self, points: Sequence[Point]) -> None:
        """Raises `NotApplicableError` for points whose press cannot be used on the loaded model."""
        alike: dict[str, list[Point]] = {}
        for point in points:
            press = point.config.press
            alike.setdefault(repr((press.method, press.layers, press.needs)), []).append(point)
        reasons: dict[Path, str] = {}
        said = []
        for same in alike.values():
            try:
                check_on_model(same[0], self.loaded.model)
            except UserError as error:
                said.append(str(error))
                why = said[-1].removeprefix(f"press={same[0].config.press.name}: ")
                reasons |= {point.dir: why for point in same}
        if said:
            raise NotApplicableError(said[0], reasons)

    def _check_controllers(self, points: Sequence[Point]) -> None:
        """Raises `UserError` for a controller on a model whose rows no controller can follow."""
        guarded = next((point.config for point in points if point.guarded), None)
        if guarded is None or (obstacle := ragged_obstacle(self.loaded.model)) is None:
            return
        raise UserError(
            f"controller={guarded.controller.name}: cannot act on model={guarded.model.name}: it "
            f"has {obstacle}; use controller=none or another model"
        )

    def generate(self, work: Sequence[PointWork]) -> Iterator[Response | PointFailed]:
        account = self.account()
        if (obstacle := ragged_obstacle(self.loaded.model)) is not None:
            log.warning(
                "run: %s has %s: requests run one at a time", self.config.model.name, obstacle
            )
        for items in _groups(self.loaded, work):
            config, date = items[0].point.config, items[0].point.manifest.date
            with self.loaded.own_attention(), reporting_progress(self.loaded.model):
                self.loaded.set_attention(self.loaded.attention_for(config))
                yield from Batch(self.loaded, config, account, date=date).run(items)

    def measure(self, work: Sequence[LatencyWork]) -> Iterator[Measurement | PointFailed]:
        with self.loaded.own_attention():
            yield from latency.measure(self.loaded, work, self.account())

    def fidelity(self, work: Sequence[PointWork]) -> Iterator[Fidelity | PointFailed]:
        account, answers = self.account(), Answers()
        for items in _groups(self.loaded, work):
            config, date = items[0].point.config, items[0].point.manifest.date
            with self.loaded.own_attention(), reporting_progress(self.loaded.model):
                self.loaded.set_attention(self.loaded.attention_for(config))
                yield from Comparison(self.loaded, config, account, date, answers).run(items)

    def account(self) -> Account:
        """What rows cost, and the bytes that all caches together may take."""
        model = self.loaded.model
        vocabulary: int = model.config.get_text_config().vocab_size
        full = ragged_obstacle(model) is not None
        layers = layers_of(model)
        cost = RowCost(layers.entry_bytes, 4 * LOGITS_COPIES * vocabulary, full, layers)
        # on CUDA, shadows lie in the host's memory
        return Account(cost, self._cap_bytes(), shadows=self.loaded.device.type != "cuda")

    def _cap_bytes(self) -> int:
        asked = self.config.engine.max_cache_gib
        if asked is not None:
            return int(asked * 2**30)
        return int(free_for_caches(self.loaded.layers()) * CACHE_SHARE)


def _groups(loaded: LoadedModel, work: Sequence[PointWork]) -> list[list[PointWork]]:
    """Points whose prompts and decoding are the same, with the same attention: they can share."""
    groups: dict[tuple[str, str], list[PointWork]] = {}
    for item in work:
        key = (item.point.variant_id, loaded.attention_for(item.point.config))
        groups.setdefault(key, []).append(item)
    return list(groups.values())
