"""Transformers' cache objects: a new one for a model, and what it holds beside keys and values.

Linear attention, convolutions and state-space layers keep a state of constant size per row. Until
the caches of transformers took them in, each such family had a cache class of its own.
"""

import inspect
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers import Cache, DynamicCache

from kvx.engines.kvpress.architecture import decoder_of

KV = tuple[torch.Tensor, torch.Tensor]
# where a cache or one of its layers keeps states, as a list by layer or a dictionary
STATES = ("conv_states", "ssm_states", "recurrent_states", "conv_cache", "linear_cache")
# where it stands in its cache: attribute, layer (None: of the cache itself), key there
StateKey = tuple[str, int | None, Any]


def new_cache(model: Any) -> Any:
    """An empty cache for one row, of the class that the model's family needs."""
    own = _own_class(model)
    if own is None:
        return DynamicCache(config=model.config)
    config = model.config.get_text_config()
    known = {
        "config": config,
        "batch_size": 1,
        "max_batch_size": 1,
        "dtype": model.dtype,
        "device": model.device,
        "devices": [next(layer.parameters()).device for layer in decoder_of(model).layers],
    }
    takes = inspect.signature(own.__init__).parameters
    return own(**{name: value for name, value in known.items() if name in takes})


def _own_class(model: Any) -> Any | None:
    """The cache class that the model's own module defines."""
    module = sys.modules[type(decoder_of(model)).__module__]
    for name, found in vars(module).items():
        if not inspect.isclass(found) or found.__module__ != module.__name__:
            continue
        if name.endswith("Cache") and hasattr(found, "update"):
            return found
    return None


def holds_layers(cache: Any) -> bool:
    """Whether it is one of transformers' caches of layers, not a family's own."""
    return isinstance(cache, Cache)


def kv_of(cache: Any, layer_idx: int) -> Any:
    """A layer's keys and values [1, KV heads, entries, head size]; None and None without them."""
    if holds_layers(cache):
        layer = cache.layers[layer_idx]
        return getattr(layer, "keys", None), getattr(layer, "values", None)
    return cache.key_cache[layer_idx], cache.value_cache[layer_idx]


def bytes_held(cache: Any) -> int:
    """Bytes of all that a cache holds: keys, values and states."""
    layers = range(len(cache.layers) if holds_layers(cache) else len(cache.key_cache))
    tensors = [t for index in layers for t in kv_of(cache, index) if t is not None]
    tensors += states_of(cache).values()
    return sum(t.numel() * t.element_size() for t in tensors)


def put(cache: Any, layer_idx: int, kv: KV) -> None:
    """Store keys and values in place of a layer's own."""
    if holds_layers(cache):
        cache.layers[layer_idx].keys, cache.layers[layer_idx].values = kv
    else:
        cache.key_cache[layer_idx], cache.value_cache[layer_idx] = kv


def empty(cache: Any, layer_idx: int) -> None:
    """Forget a layer's keys and values; they are someone else's now."""
    keys, values = kv_of(cache, layer_idx)
    if keys is not None:
        put(cache, layer_idx, (keys[..., :0, :].clone(), values[..., :0, :].clone()))


def _places(cache: Any) -> Iterator[tuple[str, int | None, Any]]:
    """Containers of states: attribute, layer and what is there."""
    for name in STATES:
        if isinstance(found := getattr(cache, name, None), list | dict):
            yield name, None, found
    for index, layer in enumerate(getattr(cache, "layers", None) or ()):
        for name in STATES:
            if isinstance(found := getattr(layer, name, None), list | dict):
                yield name, index, found


def states_of(cache: Any) -> dict[StateKey, torch.Tensor]:
    """All states [rows, ...] in a cache, by where they stand."""
    found: dict[StateKey, torch.Tensor] = {}
    for name, layer, place in _places(cache):
        items = place.items() if isinstance(place, dict) else enumerate(place)
        for key, state in items:
            if isinstance(state, torch.Tensor) and state.numel():
                found[name, layer, key] = state
    return found


def forget_states(cache: Any) -> None:
    """The states in a cache are someone else's now; `set_states` puts others in."""
    set_states(cache, dict.fromkeys(states_of(cache)))


def set_states(cache: Any, states: Mapping[StateKey, torch.Tensor | None]) -> None:
    """Put `states`, found by `states_of` in a cache of the same model, into this one."""
    for (name, layer, key), state in states.items():
        owner = cache if layer is None else cache.layers[layer]
        getattr(owner, name)[key] = state
