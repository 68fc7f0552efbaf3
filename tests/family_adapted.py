"""What a press of kvpress lacks on some families, or finds wrong there, given by hand.

SnapKV, TOVA and the presses around them score by attention weights, which kvpress recomputes as in
Llama; they take the model's own where the model hands them out, so they get those of a pass with
eager attention. CriticalKV reads the head size from the configuration, where some families have
none. Presses that score gather keys and values by `module.head_dim`, which latent attention has
not, or has for another part of the key. PyramidKV counts all layers, where only those of full
attention are compressed.
"""

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol
from unittest.mock import patch

import torch
from kvpress import PyramidKVPress, ScorerPress, SnapKVPress, TOVAPress

KV = tuple[torch.Tensor, torch.Tensor]


class Layers(Protocol):
    """The attention modules of a model, and which layers keep every token."""

    def full_layers(self) -> list[int]: ...
    def weights(self, ids: Sequence[int]) -> dict[int, torch.Tensor]: ...


@contextlib.contextmanager
def adapting(model: Any, press: Any, layers: Layers, ids: Sequence[int]) -> Iterator[None]:
    """The `press` finds on this model what it needs for a prompt of `ids`."""
    full = layers.full_layers()
    weights = layers.weights(ids)
    for part in _parts(press):
        if isinstance(part, SnapKVPress | TOVAPress):
            part.score = partial(_seen, part.score, weights)
        if isinstance(part, PyramidKVPress):
            part.get_layer_budget = _counted(part.get_layer_budget, full)
            part.compress = partial(_kept, part)
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


def _seen(
    score: Any, weights: dict[int, torch.Tensor], module: Any, hidden: Any, keys: Any, values: Any,
    _: Any, kwargs: Any,
) -> torch.Tensor:  # fmt: skip
    """The score by the model's own attention weights."""
    index = kwargs.get("layer_idx")
    own = weights[module.layer_idx if index is None else index]
    found: torch.Tensor = score(module, hidden, keys, values, own, kwargs)
    return found


def _kept(
    press: Any, module: Any, hidden: Any, keys: Any, values: Any, weights: Any, kwargs: Any
) -> KV:
    """Scorer presses keep the entries of the highest scores, whole."""
    scores = press.score(module, hidden, keys, values, weights, kwargs)
    n = keys.shape[2]
    if isinstance(press, PyramidKVPress):
        n_kept = press.get_layer_budget(module, n)
    else:
        n_kept = max(1, int(n * (1 - press.compression_ratio)))
    at = scores.topk(n_kept, dim=-1).indices[..., None]
    return keys.take_along_dim(at, 2), values.take_along_dim(at, 2)


def _counted(budget: Any, full: list[int]) -> Any:
    """PyramidKV's budget of a layer, by its place among the compressed ones.

    A layer alone has no pyramid: it keeps what the ratio asks for.
    """

    def counted(module: Any, n_tokens: int) -> int:
        if len(full) == 1:
            return round(n_tokens * (1 - budget.__self__.compression_ratio))
        among = SimpleNamespace(num_hidden_layers=len(full))
        place = SimpleNamespace(config=among, layer_idx=full.index(module.layer_idx))
        return int(budget(place, n_tokens))

    return counted
