"""What differs between the transformers versions that kvx runs on, 5.2 to 5.24, in one place.

kvpress 0.5.5 is written for transformers up to 5.2 and says so in its metadata; on a newer one kvx
translates. No other module of kvx depends on a version.

| since | what changed | what kvx does |
|---|---|---|
| 5.4 | models and attention modules take no `cache_position`, which kvpress's hooks read | `kvpress_arguments` derives it from the length of the layer's cache; `positions.cache_positions` gives it to models that still take it |
| 5.4 | `get_mask_sizes(query_length)`, before `(cache_position)` | nothing: no mask is built for the ragged cache |
| 5.5 | the states of linear-attention and convolution layers are layers of `DynamicCache`; before, each such family had a cache class of its own | `states.new_cache` finds that class |
| 5.16 | `crop(tokens_to_remove)`, before `crop(max_length)`; `get_max_length`, before `get_max_cache_shape` | nothing: kvx calls neither |
| 5.20 | rotary embeddings take no `device` | `skeleton` makes them under `torch.device` |
| 5.20 | `generate` marks a cache that its caller passed | `given_cache` reads the mark |
| 5.24 | models and attention modules call their cache `cache`, before `past_key_values`; hooks see the new name alone, callers may use the old one until 5.40, with a warning | `cache_argument` asks the signature; `kvpress_arguments` gives both names |
| 5.24 | layers' `update` gets further keywords | `RaggedCache.update` takes any; KVgrad's own layer does in `kvpress_hooks` |

Features and signatures are asked, not versions: models of `trust_remote_code` keep the names of the
version that they were written for.
"""  # noqa: E501  a table

import contextlib
import importlib.metadata
import inspect
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial, wraps
from typing import Any

import torch
import transformers
from kvpress.presses.kvgrad_press import ReadOnlyDynamicLayer
from transformers import DynamicCache

log = logging.getLogger(__name__)

# what kvx's tests run on: the first and last version of transformers, without patches
OLDEST, NEWEST = (5, 2), (5, 24)
KVPRESS = "0.5.5"
# names of the argument that is the cache, the newest first
CACHE_NAMES = ("cache", "past_key_values")
_ABSENT = object()


def untested(transformers_version: str, kvpress_version: str) -> str | None:
    """One line about versions that kvx is not tested with together; None for tested ones."""
    minor = tuple(int(part) for part in transformers_version.split(".")[:2])
    if OLDEST <= minor <= NEWEST and kvpress_version == KVPRESS:
        return None
    oldest, newest = (".".join(map(str, version)) for version in (OLDEST, NEWEST))
    return (
        f"transformers {transformers_version} with kvpress {kvpress_version}: kvx is tested with "
        f"transformers {oldest} to {newest} and kvpress {KVPRESS}, not with these"
    )


@cache
def warn_of_untested() -> None:
    """Log that line, once per process."""
    line = untested(transformers.__version__, importlib.metadata.version("kvpress"))
    if line is not None:
        log.warning("%s", line)


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """`cache` under the name that the `forward` of this model has for it."""
    return {_cache_name(type(model).forward): cache}


@cache
def _cache_name(forward: Callable[..., Any]) -> str:
    parameters = inspect.signature(forward).parameters
    return next((name for name in CACHE_NAMES if name in parameters), CACHE_NAMES[-1])


def cache_in(arguments: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The cache among keyword arguments and its name there; None if there is none."""
    return next(((n, arguments[n]) for n in CACHE_NAMES if arguments.get(n) is not None), None)


def given_cache(arguments: Mapping[str, Any]) -> tuple[str, Any] | None:
    """The cache that the caller of `generate` asked for, and its name in what reached the decoding
    method.

    None for transformers' own: an empty dynamic one. Before 5.20, an empty one that the caller
    passed looks the same.
    """
    if (found := cache_in(arguments)) is None:
        return None
    cache = found[1]
    if getattr(cache, "_is_user_defined", False):
        return found
    return None if type(cache) is DynamicCache and cache.get_seq_length() == 0 else found


def kvpress_arguments(module: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword `arguments` of an attention module's `forward`, as kvpress 0.5 expects them.

    Adds `past_key_values` and `cache_position`, the positions [tokens] of this pass in the cache,
    to be called after the pass. Without a cache, or of a layer that stores nothing there, the
    arguments stay what they are.
    """
    found = {**arguments}
    if (named := cache_in(arguments)) is None:
        return found
    found["past_key_values"] = kept = named[1]
    if found.get("cache_position") is None:
        hidden = found["hidden_states"]
        end, n = kept.get_seq_length(module.layer_idx), hidden.shape[1]
        if end >= n:
            found["cache_position"] = torch.arange(end - n, end, device=hidden.device)
    return found


@contextlib.contextmanager
def pressing(model: Any, press: Any | None) -> Iterator[None]:
    """kvpress's own context of `press`, nothing for None. See `kvpress_hooks`."""
    with kvpress_hooks(model), press(model) if press is not None else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def kvpress_hooks(model: Any) -> Iterator[None]:
    """Inside, what kvpress's presses put on the model gets the arguments that they expect.

    These are hooks on its attention modules and, in some presses, a `forward` of the model's body.
    """
    body = getattr(model, "model", model)
    modules = [m for m in model.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "`past_key_values` is deprecated", FutureWarning)
        stack.callback(body.register_forward_pre_hook(_older_name, with_kwargs=True).remove)
        stack.enter_context(_replaced(body, "forward", _either_name(body)))
        update = _further_keywords(ReadOnlyDynamicLayer.update)
        stack.enter_context(_replaced(ReadOnlyDynamicLayer, "update", update))
        for module in modules:
            register = partial(_register, module.register_forward_hook)
            stack.enter_context(_replaced(module, "register_forward_hook", register))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """A module or class with another method, its own again afterwards."""
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, method)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _further_keywords(update: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(update)
    def updated(layer: Any, keys: Any, values: Any, *_: Any, **__: Any) -> Any:
        return update(layer, keys, values)

    return updated


def _older_name(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, _named(kwargs, CACHE_NAMES[-1])


def _either_name(body: Any) -> Callable[..., Any]:
    forward, name = body.forward, _cache_name(type(body).forward)

    @wraps(forward)
    def named(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **_named(kwargs, name))

    return named


def _named(arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same arguments; the cache goes by this `name`."""
    return {name if key in CACHE_NAMES else key: value for key, value in arguments.items()}


def _register(
    register: Callable[..., Any],
    hook: Callable[..., Any],
    *,
    with_kwargs: bool = False,
    **options: Any,
) -> Any:
    def translated(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        return hook(module, args, kvpress_arguments(module, kwargs), output)

    return register(translated if with_kwargs else hook, with_kwargs=with_kwargs, **options)
