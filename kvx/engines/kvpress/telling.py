"""Progress from inside a forward pass: which layer of which prefill, and every step."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from kvx.engines.activity import ACTIVITY


@contextlib.contextmanager
def told(model: Any) -> Iterator[None]:
    """The model's decoder layers tell `ACTIVITY` what passes through them.

    Not for measuring: a call per layer and step takes microseconds.
    """
    body = getattr(model, "model", model)
    body = getattr(body, "language_model", body)
    layers = list(getattr(body, "layers", ()))
    handles = [
        layer.register_forward_pre_hook(_hook(index, len(layers)), with_kwargs=True)
        for index, layer in enumerate(layers, start=1)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
