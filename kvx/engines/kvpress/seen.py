"""What a model's attention was given: queries after norms, rotary embedding and position scale.

Taken where transformers hands them to the attention function, so they are the model's own on every
family. A `Sight` holds one layer's at a time.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvx.engines.kvpress.replacing import replaced
from kvx.engines.kvpress.rotary_call import RotaryCall, recorded_rotary, taken_calls


@dataclass(frozen=True)
class AttentionCall:
    """One layer's call of its attention function, of a batch of one.

    `query` [1, heads, n, size], `key` and `value` [1, KV heads, n, size or another], `mask` as the
    function got it, `sinks` [heads] of layers that have them. `rotaries`: the calls of the layer's
    rotary function, in order.
    """

    module: Any
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: torch.Tensor | None
    scaling: float
    softcap: float | None
    sinks: torch.Tensor | None
    rotaries: tuple[RotaryCall, ...]

    @cached_property
    def normalised(self) -> torch.Tensor:
        """Queries whose product with the keys, over sqrt(size), is the model's logit."""
        size = self.query.shape[-1]
        factor = self.scaling * size**0.5
        return self.query if abs(factor - 1) < 1e-6 else self.query * factor

    @property
    def groups(self) -> int:
        """Query heads per KV head."""
        return self.query.shape[1] // self.key.shape[1]

    def weights(self, rows: slice, columns: slice) -> torch.Tensor:
        """The attention weights [1, heads, rows, columns] of these queries, float32.

        They sum to one, less what a sink takes, over these columns up to each query's own.
        """
        query, key = self.query[:, :, rows], self.key[:, :, columns]
        key = key.repeat_interleave(self.groups, dim=1)
        logits = torch.matmul(query, key.transpose(2, 3)) * self.scaling
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        logits = logits.masked_fill(~self._visible(rows, columns), float("-inf"))
        if self.mask is not None and self.mask.dtype != torch.bool and self.mask.ndim == 4:
            logits = logits + self.mask[:, :, rows, columns]
        if self.sinks is None:
            return torch.softmax(logits, dim=-1, dtype=torch.float32)
        sinks = self.sinks.reshape(1, -1, 1, 1).expand(*logits.shape[:-1], 1)
        both = torch.cat([logits, sinks.to(logits.dtype)], dim=-1)
        return torch.softmax(both, dim=-1, dtype=torch.float32)[..., :-1]

    def _visible(self, rows: slice, columns: slice) -> torch.Tensor:
        n = self.query.shape[2]
        at = torch.arange(n, device=self.query.device)
        causal = at[None, columns] <= at[rows, None]
        if self.mask is not None and self.mask.dtype == torch.bool and self.mask.ndim == 4:
            return self.mask[:, :, rows, columns] & causal
        return causal[None, None]


_sights: list["Sight"] = []


class Sight:
    """Follows the attention of `model` while it is open; `call` is the latest layer's."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._modules = {id(module) for module in model.modules()}
        self.call: AttentionCall | None = None

    def of(self, module: Any) -> AttentionCall:
        """What the attention of `module` was given last. Raises `LookupError` if it is gone."""
        if self.call is None or self.call.module is not module:
            raise LookupError(f"the queries of {type(module).__name__} were not seen")
        return self.call

    def forget(self) -> None:
        """Release the layer's tensors."""
        self.call = None

    @contextlib.contextmanager
    def open(self) -> Iterator["Sight"]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(replaced(ALL_ATTENTION_FUNCTIONS, "get_interface", _seeing))
            stack.enter_context(recorded_rotary(self._model))
            _sights.append(self)
            try:
                yield self
            finally:
                _sights.remove(self)
                self.forget()

    def saw(
        self,
        module: Any,
        query: torch.Tensor,
        key: Any,
        value: Any,
        about: dict[str, Any],
        rotaries: tuple[RotaryCall, ...],
    ) -> None:
        if id(module) not in self._modules or not isinstance(key, torch.Tensor):
            return  # another model's, or kvx's ragged cache
        scaling = about.get("scaling")
        self.call = AttentionCall(
            module,
            query,
            key,
            value,
            about.get("attention_mask"),
            query.shape[-1] ** -0.5 if scaling is None else float(scaling),
            about.get("softcap"),
            about.get("s_aux"),
            tuple(call.slim(query.shape[-1]) for call in rotaries),
        )


def _seeing(get_interface: Callable[..., Any]) -> Callable[..., Any]:
    """transformers' look-up of an attention function, whose calls the open sights see."""

    def get(*args: Any, **kwargs: Any) -> Any:
        function = get_interface(*args, **kwargs)

        def call(
            module: Any,
            query: Any,
            key: Any,
            value: Any,
            attention_mask: Any,
            *rest: Any,
            **kw: Any,
        ) -> Any:
            about, rotaries = {"attention_mask": attention_mask, **kw}, taken_calls()
            for sight in tuple(_sights):
                sight.saw(module, query, key, value, about, rotaries)
            return function(module, query, key, value, attention_mask, *rest, **kw)

        return call

    return get
