"""What each layer of a model keeps of the tokens that it has seen.

It is found by running the model on a few tokens: whatever calls its cache's `update` and then
attends through transformers' attention interface has keys and values.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import kvpress  # noqa: F401  its import patches every registered function; ours must be registered later
import torch
from transformers import AttentionInterface

from kvx.data.kv_layout import WINDOWED
from kvx.engines.kvpress.memory import OUT_OF_MEMORY
from kvx.engines.kvpress.positions import scales_by_position
from kvx.engines.kvpress.replacing import attribute
from kvx.engines.kvpress.states import bytes_held, new_cache, states_of
from kvx.engines.kvpress.transformers_versions import cache_argument

SURVEY = "kvx_survey"
TOKENS = 4


@dataclass(frozen=True)
class CachedLayer:
    """A layer with keys and values of its own.

    A query sees the last `window` tokens, its own included, or all of them (None). `chunked`
    windows begin where the position is a multiple of their size.
    """

    index: int
    attention: Any
    entry_bytes: int  # of one token's keys and values
    window: int | None = None
    chunked: bool = False


@dataclass(frozen=True)
class Layers:
    """A model's layers with keys and values, by index, and the bytes of a row's other states.

    A model that is `latent` computes its keys and values from what its cache returns. Where layers
    are `shared`, several attention modules read one layer's entries, or one module serves several.
    Queries are `scaled` where they depend on a position that the model takes from its cache.
    `obstacle` says why its attention cannot be replaced, where it cannot. Of such a model it is
    only known how many bytes its cache takes for a token, `token_bytes`, and for whole rows.
    """

    cached: dict[int, CachedLayer]
    state_bytes: int = 0
    token_bytes: int = 0
    other_bytes: int = 0
    latent: bool = False
    shared: bool = False
    scaled: bool = False
    obstacle: str | None = None

    @property
    def full(self) -> list[CachedLayer]:
        """Those whose queries see every token."""
        return [layer for layer in self.cached.values() if layer.window is None]

    @property
    def recurrent(self) -> bool:
        """Whether rows have states that every token changes."""
        return self.state_bytes > 0

    @property
    def entry_bytes(self) -> int:
        """Of one token in all layers of full attention."""
        return sum(layer.entry_bytes for layer in self.full) + self.token_bytes

    def row_bytes(self, tokens: int, slack: int = 0) -> int:
        """Of what a row of so many tokens holds beside its layers of full attention.

        Windows with `slack` keep so many tokens more than they need.
        """
        windows = [(x.entry_bytes, x.window) for x in self.cached.values() if x.window is not None]
        held = sum(size * min(tokens, window - 1 + slack) for size, window in windows)
        return held + self.state_bytes + self.other_bytes


_known: WeakKeyDictionary[Any, Layers] = WeakKeyDictionary()


def layers_of(model: Any) -> Layers:
    """The layers of a model, found once."""
    if model not in _known:
        _known[model] = _survey(model)
    return _known[model]


@contextmanager
def attending_through(model: Any, implementation: str) -> Iterator[None]:
    """The model uses an attention implementation inside this context."""
    config = model.config.get_text_config()  # another's, of a vision tower, stays what it is
    with attribute(config, "_attn_implementation", implementation):
        yield


class _Seen:
    """Stands for a layer's keys and values in the survey."""

    def __init__(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.index, self.keys, self.values = index, keys, values

    def to(self, *_: Any, **__: Any) -> "_Seen":
        return self


@dataclass
class _Survey:
    """What a model did in its survey."""

    stored: list[_Seen] = field(default_factory=list)
    attended: dict[int, tuple[Any, _Seen, dict[str, Any]]] = field(default_factory=dict)
    readers: list[Any] = field(default_factory=list)  # of another layer's entries


_surveyed: ContextVar[_Survey] = ContextVar("the survey that runs")


def _note(
    module: Any,
    query: torch.Tensor,
    key: Any,
    value: Any,
    attention_mask: None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    survey = _surveyed.get()
    seen = key if isinstance(key, _Seen) else survey.stored[-1]
    if survey.attended.setdefault(seen.index, (module, seen, kwargs))[0] is not module:
        survey.readers.append(module)
    if isinstance(key, _Seen):
        key, value = key.keys, key.values
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(SURVEY, _note)


@torch.inference_mode()
def _survey(model: Any) -> Layers:
    try:
        (survey, cache), latent = _run(model, latent=False), False
    except OUT_OF_MEMORY:
        raise  # no property of the model
    except Exception:  # noqa: BLE001  it computes with what its cache returns
        try:
            (survey, cache), latent = _run(model, latent=True), True
        except OUT_OF_MEMORY:
            raise
        except Exception as error:  # noqa: BLE001  a family with attention of another kind
            reason = f"attention that cannot be replaced ({type(error).__name__})"
            per_token, per_row = _cache_bytes(model)
            return Layers({}, token_bytes=per_token, other_bytes=per_row, obstacle=reason)
    types = getattr(model.config.get_text_config(), "layer_types", None)
    found = {}
    for index, (module, seen, kwargs) in sorted(survey.attended.items()):
        kind = types[index] if types is not None and index < len(types) else None
        size = sum(t[:, :, 0].numel() * t.element_size() for t in (seen.keys, seen.values))
        window = _window(model, module, kind, kwargs)
        found[index] = CachedLayer(index, module, size, window, kind == "chunked_attention")
    modules = {id(layer.attention): layer.attention for layer in found.values()}
    shared = bool(survey.readers) or len(modules) < len(found)
    states = sum(t.numel() * t.element_size() for t in states_of(cache).values())
    scaled = any(scales_by_position(module) for module in modules.values())
    return Layers(found, states, latent, shared, scaled)


def _cache_bytes(model: Any) -> tuple[int, int]:
    """What the model's own cache takes for a token, and for a row of any length.

    Windows count as if they grew. Nothing is told of a model that cannot run: a request says why.
    """
    sizes = []
    for n in (TOKENS, 2 * TOKENS):
        cache = new_cache(model)
        ids = torch.arange(n, device=model.device)[None]
        try:
            model(input_ids=ids, **cache_argument(model, cache), use_cache=True)
        except OUT_OF_MEMORY:
            raise
        except Exception:  # noqa: BLE001  as the first request will
            return 0, 0
        sizes.append(bytes_held(cache))
    per_token = -((sizes[0] - sizes[1]) // TOKENS)  # rounded up
    return per_token, max(0, sizes[0] - TOKENS * per_token)


def _run(model: Any, latent: bool) -> tuple[_Survey, Any]:
    """A few tokens through the model: what it did, and the cache they went to."""
    cache, survey = new_cache(model), _Survey()
    update = cache.update

    def noted(keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *a: Any, **k: Any) -> Any:
        found = update(keys, values, layer_idx, *a, **k)
        survey.stored.append(_Seen(layer_idx, keys, values))
        return found if latent else (survey.stored[-1], survey.stored[-1])

    cache.update = noted
    ids = torch.arange(TOKENS, device=model.device)[None]
    token = _surveyed.set(survey)
    try:
        with attending_through(model, SURVEY):
            model(input_ids=ids, **cache_argument(model, cache), use_cache=True)
    finally:
        _surveyed.reset(token)
    return survey, cache


def _window(model: Any, module: Any, kind: str | None, kwargs: dict[str, Any]) -> int | None:
    config = model.config.get_text_config()
    if kind == "chunked_attention":
        return int(config.attention_chunk_size)
    if kind is not None and kind not in WINDOWED:
        return None
    window = kwargs.get("sliding_window") or getattr(config, "sliding_window", None)
    if kind is None and not getattr(config, "use_sliding_window", True):
        return None
    return None if window is None else int(window)
