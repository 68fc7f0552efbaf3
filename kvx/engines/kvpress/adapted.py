"""Presses of kvpress in a form that kvx can run: with a budget to set, and without their own hooks.

A class here drops the entries that kvpress's class of the same arguments drops. It differs in where
that happens: in `compress`, which kvx calls for each layer of a shared prefill, and not in a
forward hook.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import hydra.utils
import kvpress
import torch
from kvpress import BasePress

from kvx.engines.kvpress.states import KV

# its one message is that layers of different length need flash attention, and here they do not
_OF_LAYERS = "kvpress.presses.per_layer_compression_press"


class Chained(kvpress.ComposedPress):  # type: ignore[misc]
    """Presses one after the other on each layer. Those that drop entries share the budget.

    Each keeps the same share of what it is given, so that all together keep what was asked; the
    last one makes good what the others rounded.
    """

    forward_hook = BasePress.forward_hook

    def __post_init__(self) -> None:
        self.presses: list[Any] = [adapted(press) for press in self.presses]
        super().__post_init__()

    @property
    def compression_ratio(self) -> float:
        """Of entries: 1 minus the share that is kept."""
        return float(1 - math.prod(1 - press.compression_ratio for press in self._dropping))

    @compression_ratio.setter
    def compression_ratio(self, value: float | None) -> None:
        if value is None:  # kvpress's own, before a run
            return
        self._ratio = value
        for press in self._dropping:
            press.compression_ratio = 1 - (1 - value) ** (1 / len(self._dropping))

    @property
    def _dropping(self) -> list[Any]:
        return [press for press in self.presses if not isinstance(press, kvpress.ThinKPress)]

    def compress(
        self,
        module: Any,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attentions: Any,
        kwargs: dict[str, Any],
    ) -> KV:
        """Keys and values [1, KV heads, kept, size] of one layer."""
        asked = max(1, int(keys.shape[2] * (1 - self._ratio)))
        last = self._dropping[-1]
        for press in self.presses:
            if press is last and len(self._dropping) > 1:
                # the half guards against float rounding
                press.compression_ratio = max(0.0, 1 - (asked + 0.5) / keys.shape[2])
            keys, values = press.compress(module, hidden_states, keys, values, attentions, kwargs)
        return keys, values


class ByLayer(kvpress.PerLayerCompressionPress):  # type: ignore[misc]
    """A press whose layers keep different shares; `compression_ratios` is their profile.

    From the first layer to the last, it is interpolated where there are more or fewer layers than
    numbers, and what it keeps is scaled so that the layers keep the budget on average. No layer
    keeps more than all.
    """

    forward_hook = BasePress.forward_hook

    def __post_init__(self) -> None:
        super().__post_init__()
        self._budget, self._layer = 1 - self.compression_ratio, (0, len(self.compression_ratios))

    def post_init_from_model(self, model: Any) -> None:
        """kvpress's class leaves this out."""
        self.press.post_init_from_model(model)

    @property
    def compression_ratio(self) -> float:
        return sum(self.compression_ratios) / len(self.compression_ratios)

    @compression_ratio.setter
    def compression_ratio(self, value: float) -> None:
        self._budget = 1 - value

    def counted(self, index: int, n_layers: int) -> None:
        """The layer that comes next is number `index` of `n_layers` that are compressed."""
        self._layer = index, n_layers

    def compress(self, *args: Any, **kwargs: Any) -> KV:
        index, n = self._layer
        kept = scaled(self.compression_ratios, n, self._budget)[index]
        if kept == 1.0:
            keys, values = args[2:4]
            return keys, values
        self.press.compression_ratio = 1 - kept
        found: KV = self.press.compress(*args, **kwargs)
        return found


def scaled(ratios: Sequence[float], n_layers: int, budget: float) -> list[float]:
    """The share that each of `n_layers` keeps: the profile `ratios` (of what is dropped), its mean
    brought to `budget`.
    """
    last = len(ratios) - 1
    shares = []
    for layer in range(n_layers):
        at = layer * last / (n_layers - 1) if n_layers > 1 else last / 2
        low = min(int(at), last)
        high = min(low + 1, last)
        shares.append(1 - (ratios[low] + (at - low) * (ratios[high] - ratios[low])))
    full: set[int] = set()
    while True:
        rest = [i for i in range(n_layers) if i not in full]
        total = sum(shares[i] for i in rest)
        factor = (budget * n_layers - len(full)) / total if total else 0.0
        over = {i for i in rest if shares[i] * factor >= 1}
        if not over:
            return [1.0 if i in full else shares[i] * factor for i in range(n_layers)]
        full |= over


class Critical(kvpress.CriticalAdaKVPress):  # type: ignore[misc]
    """CriticalAdaKV that also prepares the press inside, as kvpress's other wrappers do."""

    def post_init_from_model(self, model: Any) -> None:
        self.press.post_init_from_model(model)


class Finch(kvpress.FinchPress):  # type: ignore[misc]
    """FINCH whose window is told, so that no delimiter has to be put into the prompt."""

    __call__ = BasePress.__call__

    def asked_with(self, question_tokens: int) -> None:
        """The question is the last `question_tokens` of what is compressed.

        Raises `ValueError` if there is none.
        """
        if question_tokens < 1:
            raise ValueError("FINCH ranks by the question, and this prompt has none")
        self.window_size = question_tokens


_FORMS: dict[type, type] = {
    kvpress.ComposedPress: Chained,
    kvpress.PerLayerCompressionPress: ByLayer,
    kvpress.CriticalAdaKVPress: Critical,
    kvpress.FinchPress: Finch,
}


def made(method: Mapping[str, Any]) -> Any:
    """The press that `method` describes, in kvx's form. Raises what its class raises."""
    log = logging.getLogger(_OF_LAYERS)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        return adapted(hydra.utils.instantiate(method, _convert_="all"))
    finally:
        log.setLevel(before)


def adapted(press: Any) -> Any:
    """`press` in kvx's form, with the same arguments; itself where it needs none."""
    form = _FORMS.get(type(press))
    if form is None:
        return press
    arguments = {f.name: getattr(press, f.name) for f in dataclasses.fields(press) if f.init}
    return form(**arguments)
