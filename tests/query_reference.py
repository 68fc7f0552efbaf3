"""What presses of kvpress keep, by a model's own attention: references of tests/test_queries.py.

They share nothing with the code they check: attention weights are those that transformers' eager
attention returns, and queries before the rotary embedding are made by the model's attention module
itself, given other angles.
"""

import copy
import math
from functools import cache
from typing import Any, NamedTuple

import torch
from torch.nn.functional import avg_pool1d, pad
from transformers import AttentionInterface

from kvx.engines.kvpress.compress import compressing
from kvx.engines.kvpress.head_size import with_head_size
from kvx.engines.kvpress.layers import attending_through, layers_of
from kvx.engines.kvpress.prompt_row import PromptRow
from kvx.engines.kvpress.states import kv_of, new_cache
from kvx.engines.kvpress.streams import RandomStream
from tests import families

N, WINDOW, KERNEL, SINK, FUTURE = 80, 16, 5, 4, 12
BUDGET = 0.3
# kvpress's attention is the model's
SAME = ("llama", "llama_yarn", "mistral", "phi3", "qwen2", "qwen3", "gemma", "starcoder2")
# it is another
OTHER = (
    "smollm3", "cohere", "cohere2", "ernie4_5", "exaone4", "olmo2", "olmo3", "qwen3_moe", "granite",
    "glm4", "glm4_moe", "phi3_partial", "llama4_full", "deepseek_v2", "deepseek_v3", "gemma2",
    "gemma3_text", "gemma3n", "gpt_oss", "lfm2", "ministral3", "zamba2", "gemma4", "qwen3_next",
    "qwen3_5_text",
)  # fmt: skip
THERE = families.available()
EVERY = [name for name in (*SAME, *OTHER) if name in THERE]
SEEN = "kvx_test_seen"


class Layer(NamedTuple):
    """What the model itself computes in one layer of full attention."""

    weights: torch.Tensor  # [heads, n, n]
    entries: torch.Tensor  # cached keys beside cached values [cached heads, n, width]
    keys: torch.Tensor  # what attention makes of them [KV heads, n, size]
    values: torch.Tensor
    scaling: float
    averaged: torch.Tensor  # [heads, n, size]: queries, their rotation the mean of later ones


@cache
def model_of(name: str) -> Any:
    return families.make(name)


def implementation(name: str) -> str:
    """transformers' sdpa has neither sinks nor caps on logits."""
    return "eager" if name.startswith(("gpt_oss", "gemma2")) else "sdpa"


def prompt() -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(3, families.KNOWN, (1, N), generator=draw)


_calls: list[tuple[float, torch.Tensor, torch.Tensor, torch.Tensor]] = []


def _seen(module: Any, query: Any, key: Any, value: Any, mask: Any, **kwargs: Any) -> Any:
    scaling = float(kwargs.get("scaling") or query.shape[-1] ** -0.5)
    _calls.append((scaling, query[0], key[0], value[0]))
    return value.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None


AttentionInterface.register(SEEN, _seen)


class Reference:
    """One forward pass of eager attention, and the attention modules on their own."""

    def __init__(self, name: str) -> None:
        self.model = model_of(name)
        self.calls: dict[int, tuple[Any, dict[str, Any], Any]] = {}
        self.angles: list[tuple[Any, Any, dict[str, Any], Any]] = []
        cache, handles = new_cache(self.model), []
        layers = layers_of(self.model).full
        for layer in layers:
            handles.append(layer.attention.register_forward_hook(self._attended, with_kwargs=True))
        for module in self.model.modules():
            if "RotaryEmbedding" in type(module).__name__:
                handles.append(module.register_forward_hook(self._turned, with_kwargs=True))
        with torch.no_grad(), attending_through(self.model, "eager"):
            self.model(
                input_ids=prompt(), past_key_values=cache, use_cache=True, output_attentions=True
            )
        for handle in handles:
            handle.remove()
        self.layers = {}
        for layer in layers:
            module, kwargs, weights = self.calls[layer.index]
            entries = torch.cat(kv_of(cache, layer.index), dim=-1)[0]
            _, _, keys, values = self._alone(module, kwargs)
            scaling, averaged = self._averaged(module, kwargs)
            self.layers[layer.index] = Layer(weights[0], entries, keys, values, scaling, averaged)

    def _attended(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        given = {"hidden_states": args[0], **kwargs} if args else dict(kwargs)
        index = next(x.index for x in layers_of(self.model).full if x.attention is module)
        self.calls[index] = (module, given, output[1])

    def _turned(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self.angles.append((module, args, kwargs, output))

    def _averaged(self, module: Any, kwargs: dict[str, Any]) -> tuple[float, torch.Tensor]:
        """Every query as if it stood at each of the later positions, and the mean of these."""
        given = kwargs.get("position_embeddings")
        made = [call for call in self.angles if call[3] is given]
        found = []
        for position in range(N, N + FUTURE):
            there = given if not made else self._at(made[0], position)
            found.append(self._alone(module, kwargs | {"position_embeddings": there}))
        return found[0][0], torch.stack([query for _, query, *_ in found]).mean(dim=0)

    @staticmethod
    def _at(call: tuple[Any, Any, dict[str, Any], Any], position: int) -> Any:
        module, args, kwargs, _ = call
        at = torch.full((1, N), position)
        named = kwargs | ({"position_ids": at} if "position_ids" in kwargs else {})
        given = [at if torch.is_tensor(a) and not a.is_floating_point() else a for a in args]
        return copy.deepcopy(module)(*given, **named)

    def _alone(self, module: Any, kwargs: dict[str, Any]) -> tuple[float, Any, Any, Any]:
        """The scaling, queries, keys and values of a module that is called by itself."""
        kind = type(new_cache(self.model))
        alone = {name: None if isinstance(v, kind) else v for name, v in kwargs.items()}
        _calls.clear()
        with torch.no_grad(), attending_through(self.model, SEEN):
            module(**alone)
        return _calls[-1]


@cache
def reference(name: str) -> Reference:
    return Reference(name)


class Row:
    def __init__(self, press: Any) -> None:
        self.press = press

    def build(self) -> Any:
        return copy.deepcopy(self.press)

    def at(self, budget: float) -> "Row":
        raise NotImplementedError

    method_key = None
    reads_weights = False


def kept(name: str, *presses: Any) -> dict[int, list[tuple[torch.Tensor, torch.Tensor]]]:
    """What each press keeps of each full layer, through kvx's shared prefill."""
    model, found = model_of(name), {}
    cache = new_cache(model)
    rows = [PromptRow(Row(press), N, RandomStream(0, (torch.device("cpu"),))) for press in presses]

    def store(layer: Any, compressed: Any) -> None:
        if layer.window is None:
            found[layer.index] = [(keys[0], values[0]) for keys, values in compressed]

    with (
        torch.no_grad(),
        attending_through(model, implementation(name)),
        with_head_size(model),
        compressing(model, cache, rows, store),
    ):
        model(input_ids=prompt(), past_key_values=cache, use_cache=True)
    for row in rows:
        if row.error is not None:
            raise row.error
    return found


def indices(part: torch.Tensor, whole: torch.Tensor) -> list[list[int]]:
    """By head: which rows of `whole` [heads, n, size] those of `part` are nearest to."""
    distance = torch.cdist(part.double(), whole.double())
    assert distance.min(dim=-1).values.max() < 1e-3
    return [sorted(row.tolist()) for row in distance.argmin(dim=-1)]


def same_choice(got: list[list[int]], scores: torch.Tensor, n: int) -> None:
    """`got` are the n highest scores of each head; only what is equal to rounding may differ."""
    assert [len(set(row)) for row in got] == [n] * len(got)
    for row, own in zip(got, scores, strict=True):
        least = own.topk(n).values[-1]
        assert own[row].min() >= least * (1 - 1e-4) - 1e-12


def on_entries(scores: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Of each cached head: the mean of those that are made of it."""
    return scores.reshape(len(entries), -1, scores.shape[-1]).mean(dim=1)


def by_group(scores: torch.Tensor, kv_heads: int) -> torch.Tensor:
    return scores.view(kv_heads, -1, scores.shape[-1]).mean(dim=1)


def snapkv_scores(layer: Layer) -> torch.Tensor:
    pooled = avg_pool1d(
        layer.weights[:, -WINDOW:, :-WINDOW].mean(dim=1), KERNEL, stride=1, padding=KERNEL // 2
    )
    scores = by_group(pooled, layer.keys.shape[0])
    return pad(scores, (0, WINDOW), value=math.inf)


def tova_scores(layer: Layer) -> torch.Tensor:
    last = layer.weights[:, -1, :-1].mean(dim=0)
    return pad(last, (0, 1), value=math.inf).expand(layer.keys.shape[0], -1)


def expected_scores(layer: Layer) -> torch.Tensor:
    """E[exp(q k)] of normal queries, times the value's length."""
    queries = layer.averaged[:, SINK:]
    mean = queries.mean(dim=1)
    centred = queries - mean[:, None]
    cov = centred.transpose(1, 2) @ centred / queries.shape[1]
    keys = layer.keys[:, SINK:].repeat_interleave(len(mean) // layer.keys.shape[0], dim=0)
    linear = torch.einsum("hd,hnd->hn", mean, keys) * layer.scaling
    square = torch.einsum("hni,hij,hnj->hn", keys, cov, keys) * layer.scaling**2 / 2
    scores = by_group((linear + square).softmax(dim=-1), layer.keys.shape[0])
    scores = scores * layer.values[:, SINK:].norm(dim=-1)
    return pad(scores, (SINK, 0), value=math.inf)
