"""What a model answers, and what it answers over a compressed prompt, without any of kvx's code.

The full cache is `model.generate`. With a press, one sequence is prefilled into the cache that
transformers makes for the model; a hook on every attention module lets the press's own `compress`
shorten the layer, if that layer keeps every token. Sliding, chunked, recurrent and indexed layers
stay as they are. The question (token by token where a layer has a recurrent state) and the answer
follow at their true positions. A compressed layer gets a mask of its own: a token sees all that was
kept, but for what a press hides, and the tokens since then up to itself.

Where this may differ from kvpress's pipeline: kvpress compresses sliding and chunked layers of most
families too; decodes with positions that the model derives from the cache's length (Ministral 3,
Llama 4); leaves a rotary embedding as an earlier prompt, or the press, has changed it; lets a
masking press hide keys behind fake ones, where here they get a weight of zero.
"""

import contextlib
import copy
import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tests.family_adapted import adapt
from tests.family_wrappers import moves_keys

KV = tuple[torch.Tensor, torch.Tensor]
# of transformers before 5.3, where models with recurrent layers have caches of their own
OWN_CACHES = ("DynamicCache", "HybridConvCache", "MiniMaxCache")
KEEPS_ALL = ("DynamicLayer", "LinearAttentionAndFullAttentionLayer")


@dataclass(frozen=True)
class Answer:
    """Greedy tokens up to a stop token, and the logits [tokens, vocab] that chose them."""

    tokens: list[int]
    logits: torch.Tensor


@torch.inference_mode()
def generated(model: Any, ids: Sequence[int], n_new: int) -> Answer:
    """The answer with the full cache, from `model.generate`."""
    with fresh_rotary(model):
        out = model.generate(
            torch.tensor([list(ids)]), max_new_tokens=n_new, do_sample=False, output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    return Answer(out.sequences[0, len(ids) :].tolist(), torch.cat(out.logits))


@torch.inference_mode()
def compressed(
    model: Any,
    context: Sequence[int],
    rest: Sequence[int],
    press: Any | None,
    n_new: int,
    seed: int = 0,
    adapted: str = "",
) -> Answer:
    """The answer after `press` has compressed the cache of the `context`.

    `adapted` gives the press what it looks for in vain on this family, and as "queries" also the
    model's own queries (`family_adapted`). Raises what the press raises, and `NotImplementedError`
    for one that scores all layers of a model in which not all keep every token.
    """
    with fresh_rotary(model) as rotary, torch.random.fork_rng():
        torch.manual_seed(seed)
        cache = empty_cache(model)
        layers = Layers(model, cache, rotary)
        if adapted:
            adapt(press, layers, context if adapted == "queries" else None)
        if press is None:
            _prefill(model, cache, context)
        elif type(press).__call__ is not _base_press().__call__:
            layers.require_full(context)
            with _named_as_before(press)(model):
                _prefill(model, cache, context)
                rotary.save()
            rotary.restore()
            layers.take_masks()
        else:
            press.post_init_from_model(model)
            with layers.compressing(press):
                _prefill(model, cache, context)
        at = len(context)
        if press is not None and moves_keys(press):
            at = next(layers.entries(i)[0].shape[2] for i in layers.shortened)  # type: ignore[index]
        with layers.at(at) as position:
            for some in [rest] if layers.all_attend else [[token] for token in rest]:
                logits = [_pass(model, cache, some, position)]
            tokens = [int(logits[0].argmax())]
            while len(tokens) < n_new and tokens[-1] != model.generation_config.eos_token_id:
                logits.append(_pass(model, cache, tokens[-1:], position))
                tokens.append(int(logits[-1].argmax()))
    return Answer(tokens, torch.stack(logits))


def _prefill(model: Any, cache: Any, ids: Sequence[int]) -> None:
    model.model(input_ids=torch.tensor([list(ids)]), **{_cache_name(model.model): cache})


def _pass(model: Any, cache: Any, ids: Sequence[int], position: list[int]) -> torch.Tensor:
    """Logits [vocab] after the last of `ids`; the position moves on."""
    at = torch.arange(position[0], position[0] + len(ids))
    more = {"cache_position": at} if "cache_position" in _parameters(model) else {}
    out = model(
        input_ids=torch.tensor([list(ids)]), position_ids=at[None], use_cache=True,
        **{_cache_name(model): cache}, **more,
    )  # fmt: skip
    position[0] += len(ids)
    found: torch.Tensor = out.logits[0, -1]
    return found


def empty_cache(model: Any) -> Any:
    """What transformers fills for this model: its family's own class, or a `DynamicCache`."""
    module = sys.modules[type(model).__module__]
    for name, kind in vars(module).items():
        if kind is not DynamicCache and inspect.isclass(kind) and name.endswith(OWN_CACHES):
            config = model.config.get_text_config()
            known = {
                "config": config, "batch_size": 1, "max_batch_size": 1, "dtype": model.dtype,
                "device": model.device, "devices": [model.device] * config.num_hidden_layers,
            }  # fmt: skip
            takes = inspect.signature(kind).parameters
            return kind(**{n: v for n, v in known.items() if n in takes})
    return DynamicCache(config=model.config)


def n_full_layers(model: Any) -> int:
    """How many layers keep every token."""
    with fresh_rotary(model) as rotary, torch.inference_mode():
        return len(Layers(model, empty_cache(model), rotary).full_layers())


@contextlib.contextmanager
def rounded(model: Any, seed: int) -> Iterator[None]:
    """Every weight is off by about one unit in its last place."""
    weights, draw = list(model.parameters()), torch.Generator().manual_seed(seed)
    before = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            step = torch.randn(weight.shape, generator=draw) * torch.finfo(weight.dtype).eps
            weight.mul_(1 + step)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, before, strict=True):
                weight.copy_(value)


class _Rotary:
    """The state of a model's rotary embeddings, which some change with the longest position."""

    def __init__(self, model: Any) -> None:
        self._modules = [m for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")]
        self.save()

    def save(self) -> None:
        self._state = [copy.deepcopy(vars(m)) for m in self._modules]

    def restore(self) -> None:
        for module, state in zip(self._modules, self._state, strict=True):
            vars(module).update(copy.deepcopy(state))


@contextlib.contextmanager
def fresh_rotary(model: Any) -> Iterator[_Rotary]:
    """The rotary embeddings begin, and are left, as they are now."""
    before, inside = _Rotary(model), _Rotary(model)
    try:
        yield inside
    finally:
        before.restore()


class Layers:
    """A model's attention modules with the layers of one cache."""

    def __init__(self, model: Any, cache: Any, rotary: _Rotary) -> None:
        self.model, self.cache, self.rotary = model, cache, rotary
        self.body = getattr(model.model, "language_model", model.model)
        self.config = model.config.get_text_config()
        # a block that several layers share is one module
        found = {id(m): m for layer in self.body.layers for m in layer.modules()}
        self.modules = [m for m in found.values() if type(m).__name__.endswith("Attention")]
        self.shortened: set[int] = set()  # layers
        self.hidden: dict[int, torch.Tensor] = {}  # by layer: [heads, entries] not to be seen

    @contextlib.contextmanager
    def compressing(self, press: Any) -> Iterator[None]:
        """`press` shortens each layer that keeps every token, after its attention."""

        def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            index = _index(module, kwargs)
            if _reads_another(module) or (full := self.entries(index)) is None:
                return
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            self.rotary.save()
            kept = press.compress(module, hidden, *full, output[1], kwargs)
            self.rotary.restore()  # what the press asked it for is no part of the sequence
            for before, after in zip(full, kept, strict=True):
                if before.shape[:2] + before.shape[3:] != after.shape[:2] + after.shape[3:]:
                    raise ValueError(f"{list(before.shape)} cut to {list(after.shape)}")
            self._store(index, kept)
            self.shortened.add(index)
            self._take_mask(module, index)

        with _rotary_on(self.modules, getattr(self.body, "rotary_emb", None)):
            handles = [m.register_forward_hook(hook, with_kwargs=True) for m in self.modules]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()

    @property
    def all_attend(self) -> bool:
        """Whether no layer has a recurrent state, which some models carry on for one token only."""
        layers = getattr(self.cache, "layers", None)
        return (
            layers is not None
            and all(
                isinstance(layer, DynamicLayer) and not hasattr(layer, "recurrent_states")
                for layer in layers
            )
            and not hasattr(self.cache, "linear_cache")
        )

    @contextlib.contextmanager
    def at(self, n_tokens: int) -> Iterator[list[int]]:
        """Go on after `n_tokens`, which the cache tells although compressed layers hold fewer."""
        position = [n_tokens]
        if self.shortened:
            self.cache.get_seq_length = lambda *_, **__: position[0]

        def hook(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            source = self._source(module, _index(module, kwargs))
            if source not in self.shortened:
                return None
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            mask = self._mask(source, module, hidden.shape[1])
            return args, {**kwargs, "attention_mask": mask}

        handles = [m.register_forward_pre_hook(hook, with_kwargs=True) for m in self.modules]
        try:
            yield position
        finally:
            for handle in handles:
                handle.remove()

    def full_layers(self) -> list[int]:
        """The layers that keep every token, found with a cache of their own."""
        other = Layers(self.model, empty_cache(self.model), self.rotary)
        found: list[int] = []

        def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if not _reads_another(module) and other.entries(_index(module, kwargs)) is not None:
                found.append(_index(module, kwargs))

        handles = [m.register_forward_hook(hook, with_kwargs=True) for m in self.modules]
        _prefill(self.model, other.cache, [4, 5, 6, 7])
        for handle in handles:
            handle.remove()
        return found

    def weights(self, ids: Sequence[int]) -> dict[int, torch.Tensor]:
        """By layer, the attention weights [1, heads, n, n] of a pass with eager attention."""
        found: dict[int, torch.Tensor] = {}

        def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if len(output) > 1 and isinstance(output[1], torch.Tensor):
                found[_index(module, kwargs)] = output[1]

        before = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        handles = [m.register_forward_hook(hook, with_kwargs=True) for m in self.modules]
        self.rotary.save()
        _prefill(self.model, empty_cache(self.model), ids)
        self.rotary.restore()
        for handle in handles:
            handle.remove()
        self.model.set_attn_implementation(before)
        return found

    def entries(self, index: int) -> KV | None:
        """Keys and values of a layer that keeps every token; None of another."""
        if hasattr(self.cache, "key_cache"):
            keys, values = self.cache.key_cache[index], self.cache.value_cache[index]
            return (keys, values) if keys is not None and keys.ndim == 4 else None
        layer = self.cache.layers[index] if index < len(self.cache.layers) else None
        if type(layer).__name__ not in KEEPS_ALL or getattr(layer, "keys", None) is None:
            return None
        return layer.keys, layer.values

    def _store(self, index: int, kept: KV) -> None:
        if hasattr(self.cache, "key_cache"):
            self.cache.key_cache[index], self.cache.value_cache[index] = kept
        else:
            layer = self.cache.layers[index]
            layer.keys, layer.values = kept

    def require_full(self, ids: Sequence[int]) -> None:
        """Raises `NotImplementedError` unless every layer of the model keeps every token."""
        layers = [type(layer) for layer in getattr(self.cache, "layers", ())]
        if len(layers) != self.config.num_hidden_layers or set(layers) - {DynamicLayer}:
            raise NotImplementedError("scores every layer, and not all of them keep every token")

    def take_masks(self) -> None:
        for module in self.modules:
            self.shortened.add(module.layer_idx)
            self._take_mask(module, module.layer_idx)

    def _take_mask(self, module: Any, index: int) -> None:
        """What kvpress would hide behind fake keys is masked instead."""
        masked = getattr(module, "masked_key_indices", None)
        module.masked_key_indices = None
        found = self.entries(index)
        if masked is None or found is None:
            return
        self.hidden[index] = torch.zeros(found[0].shape[1:3], dtype=torch.bool)
        self.hidden[index][masked[1], masked[2]] = True

    def _mask(self, index: int, module: Any, n: int) -> torch.Tensor | None:
        """Additive mask [1, heads, n, entries] for the next `n` tokens; None: all see all."""
        full, hidden = self.entries(index), self.hidden.get(index)
        assert full is not None
        if n == 1 and hidden is None:
            return None
        heads = full[0].shape[1]
        before = full[0].shape[2] - (n if _reads_another(module) else 0)
        mask = torch.zeros(1, heads, n, before + n)
        low = torch.finfo(mask.dtype).min
        mask[..., before:] = torch.full((n, n), low).triu(1)
        if hidden is not None:
            mask[0, :, :, : hidden.shape[1]].masked_fill_(hidden[:, None], low)
        return mask.repeat_interleave(self.config.num_attention_heads // heads, 1)

    def _source(self, module: Any, index: int) -> int:
        """The layer whose entries this one reads: mostly its own."""
        if not _reads_another(module):
            return index
        kinds = self.config.layer_types
        first = len(kinds) - self.config.num_kv_shared_layers
        return max(i for i in range(first) if kinds[i] == kinds[index])


def _index(module: Any, kwargs: dict[str, Any]) -> int:
    found = kwargs.get("layer_idx")  # Zamba 2 calls one block at several layers
    return int(module.layer_idx if found is None else found)


def _reads_another(module: Any) -> bool:
    return bool(getattr(module, "is_kv_shared_layer", False))


@contextlib.contextmanager
def _rotary_on(modules: Sequence[Any], rotary: Any | None) -> Iterator[None]:
    """Each attention module has the model's rotary embedding, where kvpress's presses look."""
    lack = [m for m in modules if rotary is not None and not hasattr(m, "rotary_emb")]
    for module in lack:
        module.rotary_emb = rotary
    try:
        yield
    finally:
        for module in lack:
            del module.rotary_emb


def _named_as_before(press: Any) -> Any:
    """A press with a hook of its own gets the cache under the name it had before 5.24."""
    hook = press.forward_hook

    def renamed(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        return hook(module, args, {"past_key_values": kwargs.get("cache"), **kwargs}, output)

    press.forward_hook = renamed
    return press


def _parameters(model: Any) -> Any:
    return inspect.signature(model.forward).parameters


def _cache_name(model: Any) -> str:
    return "cache" if "cache" in _parameters(model) else "past_key_values"


def _base_press() -> type:
    import kvpress

    return kvpress.BasePress
