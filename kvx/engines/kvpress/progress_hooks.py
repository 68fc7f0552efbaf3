"""Hooks that report progress from inside a forward pass: layers of a prefill, and steps."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch

from kvx.engines.activity import ACTIVITY
from kvx.engines.kvpress.architecture import decoder_of

# models with hooks: how often the context is open, and the hooks
_hooked_models: WeakKeyDictionary[Any, tuple[int, list[Any]]] = WeakKeyDictionary()


@contextlib.contextmanager
def reporting_progress(model: Any) -> Iterator[None]:
    """The model's decoder layers report to `ACTIVITY` what passes through them.

    Not used for latency: a call per layer and step takes microseconds. Entered again while it is
    open (by a batch that was left unfinished), it counts nothing twice.
    """
    users, handles = _hooked_models.get(model, (0, []))
    _hooked_models[model] = (users + 1, handles or _hooked(model))
    try:
        yield
    finally:
        users, handles = _hooked_models.pop(model)
        if users > 1:
            _hooked_models[model] = (users - 1, handles)
        else:
            for handle in handles:
                handle.remove()


def _hooked(model: Any) -> list[Any]:
    layers = list(getattr(decoder_of(model), "layers", ()))
    return [
        layer.register_forward_pre_hook(_hook(index, len(layers)), with_kwargs=True)
        for index, layer in enumerate(layers, start=1)
    ]


def _hook(index: int, n_layers: int) -> Callable[[Any, Any, dict[str, Any]], None]:
    def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, torch.Tensor) or hidden.dim() != 3:
            return
        rows, tokens = hidden.shape[:2]
        if tokens > 1:
            ACTIVITY.prefill(rows * tokens, index, n_layers)
        elif index == 1:
            ACTIVITY.step(rows)

    return hook
