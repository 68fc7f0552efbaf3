"""What a press of kvpress lacks on some families, given by hand.

CriticalKV reads the head size from the configuration, where some families have none. Presses that
score gather keys and values by `module.head_dim`, which latent attention has not, or has for
another part of the key. PyramidKV counts all layers, where only those of full attention are
compressed. ExpectedAttention asks the rotary embedding without a layer type, which families with
windows need.
"""

import contextlib
import inspect
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol
from unittest.mock import patch

import torch
from kvpress import PyramidKVPress, ScorerPress

KV = tuple[torch.Tensor, torch.Tensor]


class Layers(Protocol):
    """The attention modules of a model, and which layers keep every token."""

    modules: list[Any]

    def full_layers(self) -> list[int]: ...


@contextlib.contextmanager
def adapting(model: Any, press: Any, layers: Layers) -> Iterator[None]:
    """The `press` finds on this model what it needs."""
    full = layers.full_layers()
    for part in _parts(press):
        if isinstance(part, PyramidKVPress):
            part.get_layer_budget = _counted(part.get_layer_budget, full)
        elif type(part).compress is ScorerPress.compress:
            part.compress = partial(_kept, part)
    config = model.config.get_text_config()
    with contextlib.ExitStack() as stack:
        if getattr(config, "head_dim", None) is None:
            width = config.hidden_size // config.num_attention_heads
            stack.enter_context(patch.object(config, "head_dim", width, create=True))
        yield


def _parts(press: Any) -> Iterator[Any]:
    yield press
    for value in vars(press).values():
        if isinstance(value, ScorerPress):
            yield from _parts(value)


def _kept(
    press: Any, module: Any, hidden: Any, keys: Any, values: Any, weights: Any, kwargs: Any
) -> KV:
    """Scorer presses keep the entries of the highest scores, whole."""
    scores = press.score(module, hidden, keys, values, weights, kwargs)
    n_kept = max(1, int(keys.shape[2] * (1 - press.compression_ratio)))
    at = scores.topk(n_kept, dim=-1).indices[..., None]
    return keys.take_along_dim(at, 2), values.take_along_dim(at, 2)


def _counted(budget: Any, full: list[int]) -> Any:
    """PyramidKV's budget of a layer, by its place among the compressed ones."""

    def counted(module: Any, n_tokens: int) -> int:
        among = SimpleNamespace(num_hidden_layers=len(full))
        return int(
            budget(SimpleNamespace(config=among, layer_idx=full.index(module.layer_idx)), n_tokens)
        )

    return counted
