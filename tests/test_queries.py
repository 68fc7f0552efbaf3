"""Presses rank by the model's own attention, on every family (docs/queries.md).

The references share nothing with the code they check: attention weights are those that
transformers' eager attention returns, and queries before the rotary embedding are made by the
model's attention module itself, given angles of zero.
"""

import contextlib
import copy
import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import kvpress
import pytest
import torch
from kvpress.presses import expected_attention_press
from torch.nn.functional import avg_pool1d, pad
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvx.config.press_choices import Queries
from kvx.data.model_attention import RECOMPUTING, recomputes
from kvx.data.model_attention import SAME as SAME_TYPES
from kvx.engines.kvpress.agreement import (
    OUTPUT,
    QUERIES,
    RECOMPUTED,
    agreement,
    measure,
)
from kvx.engines.kvpress.compress import compressing, hooked
from kvx.engines.kvpress.head_size import with_head_size
from kvx.engines.kvpress.layers import attending_through, layers_of
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.press import with_queries
from kvx.engines.kvpress.press_queries import PressQueries
from kvx.engines.kvpress.prompt_row import PromptRow
from kvx.engines.kvpress.seen import Sight
from kvx.engines.kvpress.states import kv_of, new_cache
from kvx.engines.kvpress.streams import RandomStream
from tests import families
from tests.conftest import request_rows

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


@pytest.mark.parametrize("name", EVERY)
def test_the_attention_that_was_seen_is_eagers(name: str) -> None:
    own, model = reference(name), model_of(name)
    sight, found = Sight(model), {}

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        index = next(x.index for x in layers_of(model).full if x.attention is module)
        found[index] = sight.of(module).weights(slice(N - WINDOW, N), slice(0, N))[0]

    handles = [
        layer.attention.register_forward_hook(hook, with_kwargs=True)
        for layer in layers_of(model).full
    ]
    with torch.no_grad(), attending_through(model, implementation(name)), sight.open():
        model(input_ids=prompt(), use_cache=False)
    for handle in handles:
        handle.remove()
    assert sorted(found) == sorted(own.layers) != []
    for index, layer in own.layers.items():
        assert (found[index] - layer.weights[:, -WINDOW:]).abs().max() < 1e-5


@pytest.mark.parametrize("name", EVERY)
def test_presses_keep_what_the_models_attention_says(name: str) -> None:
    ratio, own = 1 - BUDGET, reference(name)
    found = kept(
        name,
        kvpress.SnapKVPress(ratio, WINDOW, KERNEL),
        kvpress.TOVAPress(ratio),
        kvpress.ExpectedAttentionPress(ratio, n_future_positions=FUTURE, n_sink=SINK),
    )
    n_kept = int(N * (1 - ratio))
    assert sorted(found) == sorted(own.layers)
    for index, layer in own.layers.items():
        every = (snapkv_scores(layer), tova_scores(layer), expected_scores(layer))
        for (keys, values), scores in zip(found[index], every, strict=True):
            at = indices(torch.cat([keys, values], dim=-1), layer.entries)
            same_choice(at, on_entries(scores, layer.entries), n_kept)
            assert keys.shape[1] == values.shape[1]


@pytest.mark.parametrize("name", [n for n in SAME if n in THERE])
def test_where_kvpress_is_right_it_is_left_alone(name: str) -> None:
    model = model_of(name)
    found = measure(model)
    assert found.largest < 1e-5
    assert found.reasons == {}
    press = kvpress.SnapKVPress(0.5)
    with PressQueries(model) as queries:
        queries.serve(press)
        assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
        assert press.compress.__wrapped__.__func__ is kvpress.SnapKVPress.compress


@pytest.mark.parametrize("name", [n for n in OTHER if n in THERE])
def test_where_kvpress_is_not_the_model_it_is_told(name: str) -> None:
    found = measure(model_of(name))
    press = kvpress.ExpectedAttentionPress(0.5)
    assert found.against(press)
    if name == "gemma3_text":  # one rotary embedding per kind of layer, which SnapKV is given
        assert found.largest < 1e-5
        assert found.against(kvpress.SnapKVPress(0.5)) is None
    elif name == "ministral3":  # scaled from its original length on, which 48 tokens are below
        assert found.largest < 1e-5
        assert "scale by position" in str(found.reason)
    else:
        assert found.largest > (0.005 if name == "gemma2" else 0.1)
        assert found.reason == found.against(kvpress.TOVAPress(0.5))
    assert found.against(kvpress.KnormPress(0.5)) is None


def test_asked_for_kvpress_own_queries_are_used() -> None:
    """What kvpress's code keeps on SmolLM3, whose layers without rotary embedding it rotates."""
    press = kvpress.SnapKVPress(1 - BUDGET, WINDOW, KERNEL)
    theirs = with_queries(copy.deepcopy(press), Queries.kvpress)
    model, found = model_of("smollm3"), {}
    cache = new_cache(model)

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        layer = cache.layers[module.layer_idx]
        found[module.layer_idx] = copy.deepcopy(press).compress(
            module, kwargs["hidden_states"], layer.keys, layer.values, None, kwargs
        )

    handles = [
        layer.attention.register_forward_hook(hook, with_kwargs=True)
        for layer in layers_of(model).full
    ]
    with torch.no_grad():
        model(input_ids=prompt(), past_key_values=cache)
    for handle in handles:
        handle.remove()
    shared = kept("smollm3", theirs, press)
    differ = 0
    for index, (keys, _) in found.items():
        assert torch.equal(keys[0], shared[index][0][0])
        differ += not torch.equal(keys[0], shared[index][1][0])
    assert differ == len([i for i in found if not model.config.no_rope_layers[i]])


@pytest.mark.parametrize("name", ["smollm3", "deepseek_v3", "lfm2", "glm4"])
def test_wrappers_pass_the_models_queries_on(name: str) -> None:
    """ChunkKV and CriticalKV by hand, on SnapKV's scores from eager attention."""
    if name not in THERE:
        pytest.skip("not in this transformers")
    ratio, chunk, own, model = 1 - BUDGET, 8, reference(name), model_of(name)
    inner = kvpress.SnapKVPress(ratio, WINDOW, KERNEL)
    chunked = kvpress.ChunkKVPress(copy.deepcopy(inner), chunk_length=chunk)
    critical = kvpress.CriticalKVPress(copy.deepcopy(inner), first_stage_ratio=0.0)
    found = kept(name, chunked, critical)
    for layer in layers_of(model).full:
        seen = own.layers[layer.index]
        scores = snapkv_scores(seen)
        scores = scores.where(scores.isfinite(), scores[scores.isfinite()].max() + 1)
        chunks = scores.sum(dim=0).view(-1, chunk).mean(dim=-1)
        first = chunks.topk(max(1, int(len(chunks) * BUDGET))).indices.sort().values * chunk
        expected = (first[:, None] + torch.arange(chunk)).flatten().tolist()
        assert all(
            row == expected
            for row in indices(torch.cat(found[layer.index][0], dim=-1), seen.entries)
        )

        weight = getattr(layer.attention, "o_proj", None) or layer.attention.out_proj
        by_head = weight.weight.T.reshape(len(seen.weights), -1, weight.weight.shape[0])
        values = seen.values.repeat_interleave(len(by_head) // len(seen.values), dim=0)
        norms = by_group(torch.einsum("hnd,hdm->hnm", values, by_head).abs().sum(-1), len(scores))
        entries = torch.cat(found[layer.index][1], dim=-1)
        critical_scores = on_entries((scores + 1e-4) * norms, seen.entries)
        same_choice(indices(entries, seen.entries), critical_scores, entries.shape[1])


@pytest.mark.parametrize("name", ["deepseek_v3", "glm4", "llama4_full", "qwen3_moe", "ernie4_5"])
def test_every_press_that_recomputes_runs(name: str) -> None:
    if name not in THERE:
        pytest.skip("not in this transformers")
    inner = kvpress.SnapKVPress(0.5, WINDOW, KERNEL)
    presses = (
        kvpress.CompactorPress(0.5), kvpress.LeverageScorePress(0.5),
        kvpress.NonCausalAttnPress(0.5), kvpress.PyramidKVPress(0.5, WINDOW, KERNEL),
        kvpress.ChunkPress(copy.deepcopy(inner), chunk_length=40), kvpress.KnormPress(0.5),
        kvpress.KeyDiffPress(0.5), kvpress.LagKVPress(0.5), kvpress.StreamingLLMPress(0.5),
    )  # fmt: skip
    if name != "deepseek_v3":  # it multiplies keys with values, which are narrower there
        presses = (*presses, kvpress.CapPress(0.5))
    for layer in kept(name, *presses).values():
        assert len(layer) == len(presses)
        assert all(keys.shape[1] == values.shape[1] < N for keys, values in layer)


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "llama4_full", "exaone4"])
def test_keys_before_rotation_are_the_models(name: str) -> None:
    """Compactor's leverage scores, of keys made with angles of zero."""
    if name not in THERE:
        pytest.skip("not in this transformers")
    model, found = model_of(name), {}
    queries = PressQueries(model)
    press = kvpress.LeverageScorePress(0.5)
    made: list[torch.Tensor] = []
    press.compute_leverage_scores = lambda keys, size: made.append(keys) or keys.norm(dim=-1)

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        keys = queries._sight.of(module).key
        press.compress(module, kwargs["hidden_states"], keys, keys, None, kwargs)
        found[module.layer_idx] = (module, dict(kwargs), made.pop())

    with torch.no_grad(), queries:
        queries.serve(press)
        handles = [
            layer.attention.register_forward_hook(hook, with_kwargs=True)
            for layer in layers_of(model).full
        ]
        model(input_ids=prompt(), use_cache=False)
    for handle in handles:
        handle.remove()
    for module, kwargs, keys in found.values():
        angles = kwargs["position_embeddings"]
        zero = (
            (torch.ones_like(angles[0]), torch.zeros_like(angles[1]))
            if isinstance(angles, tuple)
            else torch.ones_like(angles)
        )
        sight = Sight(model)
        with torch.no_grad(), sight.open():
            module(**kwargs | {"position_embeddings": zero})
            assert (sight.of(module).key - keys).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["smollm3", "exaone4", "glm4"])
def test_a_press_that_hides_entries_hides_those(name: str) -> None:
    """AdaKV: the lowest scores of all heads of a layer."""
    own, model = reference(name), model_of(name)
    press = kvpress.AdaKVPress(kvpress.SnapKVPress(1 - BUDGET, WINDOW, KERNEL), alpha_safeguard=0.0)
    cache = new_cache(model)
    with torch.no_grad(), hooked(model, press, cache, reads_weights=False):
        model(input_ids=prompt(), past_key_values=cache, use_cache=True)
    for layer in layers_of(model).full:
        _, heads, positions = layer.attention.masked_key_indices
        layer.attention.masked_key_indices = None
        scores = snapkv_scores(own.layers[layer.index])
        kept_mask = torch.ones_like(scores, dtype=torch.bool)
        kept_mask[heads, positions] = False
        row = kept_mask.flatten().nonzero().flatten().tolist()
        assert len(heads) == scores.numel() - len(row) == len(scores) * (N - int(N * BUDGET))
        same_choice([row], scores.flatten()[None], len(row))


def test_the_comparison_is_remembered_by_the_models_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KVX_CACHE", str(tmp_path))
    model, other = families.make("olmo2"), families.make("olmo2")
    device = torch.device("cpu")
    first = agreement(LoadedModel(model, None, device, frozenset(), content="c0ffee"))
    (file,) = (tmp_path / "agreement").iterdir()
    assert file.name.startswith("c0ffee-float32-")
    handle = other.register_forward_pre_hook(lambda *_: pytest.fail("the model ran again"))
    again = agreement(LoadedModel(other, None, device, frozenset(), content="c0ffee"))
    assert again == first
    assert first.largest > 0.1
    handle.remove()

    file.write_text("{")  # a damaged file costs a second measurement
    third = families.make("olmo2")
    assert agreement(LoadedModel(third, None, device, frozenset(), content="c0ffee")) == first
    assert json.loads(file.read_text())["reasons"] == first.reasons


def test_nothing_is_left_behind() -> None:
    model = model_of("smollm3")
    before = kvpress.SnapKVPress.compute_window_attention
    prerope = expected_attention_press.get_prerope_query_states
    with contextlib.suppress(ZeroDivisionError), PressQueries(model) as queries:
        queries.serve(kvpress.SnapKVPress(0.5))
        assert kvpress.SnapKVPress.compute_window_attention is not before
        assert "get_interface" in vars(ALL_ATTENTION_FUNCTIONS)
        raise ZeroDivisionError
    assert kvpress.SnapKVPress.compute_window_attention is before
    assert isinstance(vars(kvpress.SnapKVPress)["compute_window_attention"], staticmethod)
    assert expected_attention_press.get_prerope_query_states is prerope
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
    assert all("rotary_emb" not in vars(m) for m in model.modules())


def test_one_layers_queries_are_held_at_a_time() -> None:
    model, sight = model_of("smollm3"), Sight(model_of("smollm3"))
    with torch.no_grad(), sight.open():
        model(input_ids=prompt(), use_cache=False)
        last = layers_of(model).full[-1].attention
        assert sight.of(last).module is last
        with pytest.raises(LookupError, match="not seen"):
            sight.of(layers_of(model).full[0].attention)
    assert sight.call is None


def test_scored_hidden_states_that_are_no_slice_are_refused() -> None:
    """BlockPress gathers them head by head: no query of the model belongs to them."""
    press = kvpress.BlockPress(kvpress.SnapKVPress(0.5, WINDOW, KERNEL), block_size=40)
    with pytest.raises(NotImplementedError, match="no slice of the prompt"):
        kept("smollm3", press)


def test_a_projection_of_another_shape_is_told() -> None:
    """CriticalKV reads the width of a value in the configuration; latent attention has another."""
    for name, same in (("llama", True), ("qwen2", True), ("deepseek_v3", False), ("lfm2", False)):
        if name in THERE:
            reasons = measure(model_of(name)).reasons
            assert (OUTPUT not in reasons) == same
            assert (QUERIES not in reasons) == same


def test_families_that_are_known_to_be_the_same_are() -> None:
    """Their points keep their ids, so kvpress's own queries must be right on them."""
    types = {name: families.FAMILIES[name].model_type for name in THERE}
    known = [name for name, kind in types.items() if kind in SAME_TYPES and name != "phi3_partial"]
    assert {"llama_yarn", "qwen2_window", "phi3_longrope", "seed_oss"} < set(known)
    for name in known:
        if name in ("seed_oss", *SAME):
            assert measure(model_of(name)).reasons == {}, name


def test_classes_that_change_ids_are_those_that_recompute() -> None:
    names = {name for name, _ in RECOMPUTED} | {"PyramidKVPress"}
    assert names == set(RECOMPUTING)
    nested = {"_target_": "kvpress.AdaKVPress", "press": {"_target_": "kvpress.SnapKVPress"}}
    assert recomputes(nested)
    assert not recomputes({"_target_": "kvpress.KnormPress"})
    assert not recomputes(None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return families.write("smollm3", tmp_path / "smollm3")


RUN = (
    "-m", "experiment=demo", "experiment_name=q", "measure=quality", "model=hf", "budget=1.0,0.5",
    "press=snapkv_w16,knorm", "dataset.source.n_examples=30", "dataset.sampling.n_per_bin=1",
    "decoding.max_new_tokens=4",
)  # fmt: skip


def _rows(kvx: Any, folder: Path, *more: str) -> Any:
    assert kvx("all", *RUN, f"model.path={folder}", *more).code == 0
    rows = request_rows(Path("outputs/runs/q"))
    return rows[rows["point_id"].str.startswith("snapkv_w16-0.5")], rows


def test_an_adapted_press_is_marked_in_every_row_and_table(kvx: Any, folder: Path) -> None:
    own, rows = _rows(kvx, folder)
    assert own["adapted"].str.contains("kvpress's queries differ from the model's by").all()
    assert not own["degenerate"].any()
    assert rows[~rows.index.isin(own.index)]["adapted"].isna().all()
    assert "Adapted press" in Path("outputs/runs/q/report.md").read_text()


def test_a_press_that_is_not_its_method_is_marked(kvx: Any, folder: Path) -> None:
    own, rows = _rows(kvx, folder, "press.queries=kvpress")
    assert own["degenerate"].all()
    assert own["degenerate_reason"].str.startswith("not the method: kvpress's queries").all()
    assert rows["adapted"].isna().all()
    assert not rows[~rows.index.isin(own.index)]["degenerate"].any()
    assert "not the method: kvpress's queries" in Path("outputs/runs/q/report.md").read_text()
