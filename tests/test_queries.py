"""Presses rank by the model's own attention, on every family (docs/queries.md)."""

import contextlib
import copy
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kvpress
import pytest
import torch
from kvpress.presses import expected_attention_press
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvx.config.press_choices import Queries
from kvx.data.model_attention import QUERIES
from kvx.engines.kvpress.agreement import (
    OUTPUT,
    agreement,
    measure,
)
from kvx.engines.kvpress.compress import hooked
from kvx.engines.kvpress.layers import attending_through, layers_of
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.press import with_queries
from kvx.engines.kvpress.press_queries import PressQueries
from kvx.engines.kvpress.seen import Sight
from kvx.engines.kvpress.states import new_cache
from tests import families
from tests.query_reference import (
    BUDGET,
    EVERY,
    FUTURE,
    KERNEL,
    OTHER,
    SAME,
    SINK,
    THERE,
    WINDOW,
    N,
    by_group,
    expected_scores,
    implementation,
    indices,
    kept,
    model_of,
    on_entries,
    prompt,
    reference,
    same_choice,
    snapkv_scores,
    tova_scores,
)


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
    assert max(found.per_layer.values()) < 1e-5
    assert found.reasons == {}
    press = kvpress.SnapKVPress(0.5)
    with PressQueries(model) as queries:
        queries.serve(press)
        assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)
        assert press.compress.__wrapped__.__func__ is kvpress.SnapKVPress.compress


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_no_difference(dtype: torch.dtype) -> None:
    for name in ("llama", "qwen3", "phi3", "gemma"):
        found = measure(families.make(name).to(dtype))
        assert found.reasons == {}, name
    for name in ("qwen3_moe", "smollm3", "granite", "ernie4_5"):
        assert QUERIES in measure(families.make(name).to(dtype)).reasons, name


def test_attention_that_cannot_be_seen_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose modules call an attention function of their own."""
    model = families.make("qwen3")
    own = sys.modules[type(model).__module__]
    hidden = SimpleNamespace(get_interface=lambda name, eager: eager)
    monkeypatch.setattr(own, "ALL_ATTENTION_FUNCTIONS", hidden)
    found = measure(model)
    assert not found.seen
    assert "cannot be compared" in str(found.against(kvpress.SnapKVPress(0.5)))
    press = kvpress.SnapKVPress(0.5)
    with PressQueries(model) as queries:
        queries.serve(press)
        assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)


@pytest.mark.parametrize("name", [n for n in OTHER if n in THERE])
def test_where_kvpress_is_not_the_model_it_is_told(name: str) -> None:
    found = measure(model_of(name))
    press = kvpress.ExpectedAttentionPress(0.5)
    assert found.against(press)
    if name == "gemma3_text":  # one rotary embedding per kind of layer, which SnapKV is given
        assert max(found.per_layer.values()) < 1e-5
        assert found.against(kvpress.SnapKVPress(0.5)) is None
    elif name == "ministral3":  # scaled from its original length on, which 48 tokens are below
        assert max(found.per_layer.values()) < 1e-5
        assert "scale by position" in found.reasons[QUERIES]
    else:
        assert max(found.per_layer.values()) > (0.005 if name == "gemma2" else 0.1)
        assert found.reasons[QUERIES] == found.against(kvpress.TOVAPress(0.5))
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
    assert max(first.per_layer.values()) > 0.1
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
