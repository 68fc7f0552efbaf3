"""Presses around presses, and those that do more than score: as kvpress runs them, or refused."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kvpress
import pytest
import torch
from transformers import DynamicCache

from kvx.cli.command import compose
from kvx.cli.press_files import shipped_presses
from kvx.config.distinct import refuse_dropped
from kvx.config.identity import resolved
from kvx.config.press_choices import PressNeed
from kvx.data.prompt import PromptBuilder
from kvx.engines.base import PointWork, Response
from kvx.engines.kvpress.adapted import scaled
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.wrapping import check_wrapping
from kvx.errors import UserError
from tests.hub_files import with_files
from tests.test_engine import answers, assert_equals_kvpress, prefilled, recall

Made = Callable[[float], Any]  # kvpress's own press, at a compression ratio
Run = dict[str, tuple[PointWork, list[Response]]]


def _snapkv(ratio: float) -> Any:
    return kvpress.SnapKVPress(ratio, window_size=8)


def _composed(ratio: float) -> Any:
    think = kvpress.ThinKPress(key_channel_compression_ratio=0.25)
    return kvpress.ComposedPress([_snapkv(ratio), think])


SNAPKV = ("press.inner=snapkv", "press.inner.window_size=8")
# what is typed behind press=…, and what that is in kvpress
THEIRS: dict[str, tuple[tuple[str, ...], Made]] = {
    "adakv": (("press.inner=knorm",), lambda r: kvpress.AdaKVPress(kvpress.KnormPress(r))),
    "criticalkv": (SNAPKV, lambda r: kvpress.CriticalKVPress(_snapkv(r))),
    "critical_adakv": (SNAPKV, lambda r: kvpress.CriticalAdaKVPress(_snapkv(r))),
    "block": (
        ("press.method.block_size=16",),
        lambda r: kvpress.BlockPress(kvpress.KeyDiffPress(r), block_size=16),
    ),
    "chunk": (
        ("press.method.chunk_length=32",),
        lambda r: kvpress.ChunkPress(kvpress.KeyDiffPress(r), chunk_length=32),
    ),
    "chunkkv": (
        ("press.inner=lagkv", "press.inner.lag_size=16"),
        lambda r: kvpress.ChunkKVPress(kvpress.LagKVPress(r, lag_size=16)),
    ),
    "key_rerotation": (SNAPKV, lambda r: kvpress.KeyRerotationPress(_snapkv(r))),
    "merging": (SNAPKV, lambda r: kvpress.MergingPress(_snapkv(r))),
    "think": (("budget=0.75",), lambda r: kvpress.ThinKPress(2 * r)),
    "composed": (
        ("press.inner=[snapkv,think]", "press.inner.snapkv.window_size=8",
         "press.inner.think.key_channel_compression_ratio=0.25"),
        _composed,
    ),
    "dms": (
        ("press.method.threshold=0.1", "press.method.sliding_window_size=16"),
        lambda r: kvpress.DMSPress(kvpress.KVzapPress(), threshold=0.1, sliding_window_size=16),
    ),
    "kvzap": ((), kvpress.KVzapPress),
    "fastkvzip": ((), kvpress.FastKVzipPress),
    "duo_attention": (("press.hub=[]",), lambda r: kvpress.DuoAttentionPress(r)),
}  # fmt: skip
HIDING = {"adakv", "critical_adakv", "dms", "fastkvzip", "duo_attention"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """All of them in one run of the engine, with what they load from the hub."""
    folder = tmp_path_factory.mktemp("wrappers")
    work = {
        press: recall(folder, "budget=0.5", f"press={press}", *typed, n=9)
        for press, (typed, _) in THEIRS.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        engine = KVPressEngine(work["adakv"].point.config)
        with_files(patch, folder / "hub", engine.loaded.model)
        engine.check([item.point for item in work.values()])
        found = answers(*work.values())
        yield {
            press: (item, [r for r in found if r.request.point.dir == item.point.dir])
            for press, item in work.items()
        }


@pytest.mark.parametrize("press", THEIRS)
def test_texts_are_those_of_kvpress_pipeline(run: Run, press: str) -> None:
    work, responses = run[press]
    assert not [r.error_message for r in responses if r.error_message]
    assert_equals_kvpress(work, responses, THEIRS[press][1])


def test_what_is_hidden_saves_no_byte_and_is_counted(run: Run) -> None:
    for press, (_, responses) in run.items():
        for kv in (r.kv for r in responses):
            assert kv is not None
            if press in HIDING:
                assert kv.bytes_physical == kv.bytes_full
                assert kv.entries_effective < kv.entries_physical
            elif press == "think":  # half of the key channels, so a quarter of all numbers
                assert kv.bytes_physical == kv.bytes_full
                assert kv.entries_effective == kv.entries_physical
                assert kv.bytes_effective == 0.75 * kv.bytes_full
            elif press == "composed":
                assert kv.bytes_effective == (1 - 0.25 / 2) * kv.bytes_physical < kv.bytes_full
            else:
                assert kv.bytes_physical == kv.bytes_effective < kv.bytes_full


def assert_kept(work: PointWork, cache: Any) -> None:
    """The first prompt's layers hold what a `cache` does that kvpress has compressed."""
    with torch.inference_mode():
        ours = prefilled(work).buckets[0]
    for index, layer in enumerate(cache.layers):
        kept = ours._layers[index]
        assert torch.equal(layer.keys[0], kept.keys[0, :, : kept.end])
        assert torch.equal(layer.values[0], kept.values[0, :, : kept.end])


def test_a_chain_and_layers_of_their_own_keep_what_kvpress_keeps(tmp_path: Path) -> None:
    chain = recall(
        tmp_path, "budget=0.5", "press=composed", "press.inner=[snapkv,knorm,keydiff]",
        "press.inner.snapkv.window_size=8", n=1,
    )  # fmt: skip
    layered = recall(
        tmp_path, "budget=0.5", "press=per_layer", *SNAPKV,
        "press.method.compression_ratios=[0.25,0.65]", n=1,
    )  # fmt: skip
    n = chain.requests[0][0].entry.compressed_tokens
    share = 0.5 ** (1 / 3)
    after = int(int(n * share) * share)
    parts = [_snapkv(1 - share), kvpress.KnormPress(1 - share)]
    last = kvpress.KeyDiffPress(1 - (int(n * 0.5) + 0.5) / after)
    profile = [1 - 0.75 * 0.5 / 0.55, 1 - 0.35 * 0.5 / 0.55]
    for work, theirs in (
        (chain, kvpress.ComposedPress([*parts, last])),
        (layered, kvpress.PerLayerCompressionPress(_snapkv(0.0), profile)),
    ):
        engine = KVPressEngine(work.point.config)
        model = engine.loaded.model
        builder = PromptBuilder(engine.loaded.tokenizer, work.point.config)
        ids = torch.tensor([builder.parts(work.requests[0][1]).compressed_ids])
        cache = DynamicCache()
        with torch.inference_mode(), theirs(model):
            model.model(input_ids=ids, past_key_values=cache)
        assert_kept(work, cache)
        lengths = [layer.keys.shape[2] for layer in cache.layers]
        assert abs(sum(lengths) / len(lengths) - n * 0.5) <= 1
    assert lengths == [int(n * 0.75 * 0.5 / 0.55), int(n * 0.35 * 0.5 / 0.55)]


def test_a_profile_is_brought_to_the_budget() -> None:
    assert scaled([0.5], 3, 0.25) == [0.25] * 3
    assert scaled([0.2, 0.6], 3, 0.3) == pytest.approx([0.4, 0.3, 0.2])
    full = scaled([0.0, 0.9], 4, 0.8)  # of the first two, more than all would be kept
    assert full[:2] == [1.0, 1.0]
    assert sum(full) == pytest.approx(3.2)


@torch.inference_mode()
def test_finch_keeps_what_it_keeps_with_its_delimiter(tmp_path: Path) -> None:
    work = recall(tmp_path, "budget=0.5", "press=finch", "prompt.query_aware=true", n=1)
    loaded, example = KVPressEngine(work.point.config).loaded, work.requests[0][1]
    builder = PromptBuilder(loaded.tokenizer, work.point.config)
    ids, asked = builder.parts(example).compressed_ids, builder.question_tokens(example)
    assert loaded.tokenizer.decode(ids[-asked:]).split() == ["?", example.question]
    tokenizer, model = copy.deepcopy(loaded.tokenizer), copy.deepcopy(loaded.model)
    theirs, cache = kvpress.FinchPress(0.5), DynamicCache()
    theirs.update_model_and_tokenizer(model, tokenizer)
    with theirs(model):
        delimited = [*ids[:-asked], theirs.delimiter_token_id, *ids[-asked:]]
        model.model(input_ids=torch.tensor([delimited]), past_key_values=cache)
    assert_kept(work, cache)


def test_shipped_wrappers_keep_their_identity() -> None:
    """They were on SnapKV before another press could be named."""
    own = compose("press=adakv", "press.degenerate_at_tokens=3").press
    assert (own.degenerate_at_tokens, own.min_prompt_tokens) == (3, 64)
    found = compose("press=adakv").press
    snapkv = {"_target_": "kvpress.SnapKVPress", "window_size": 64, "kernel_size": 5}
    assert resolved(found) == {
        "name": "adakv",
        "method": {"_target_": "kvpress.AdaKVPress", "alpha_safeguard": 0.2, "press": snapkv},
        "needs": ["masks"],
        "score_uses_budget": True,
        "degenerate_at_tokens": 64,
        "min_prompt_tokens": 64,
        "tolerance_tokens": 1,
    }
    named = compose("press=adakv", "press.inner=snapkv").press
    assert resolved(named) == {**resolved(found), "name": "adakv_snapkv"}


@torch.inference_mode()
def test_blocks_keep_what_knorm_keeps(tmp_path: Path) -> None:
    """Which is why it is told of every prompt."""
    kept = [
        prefilled(recall(tmp_path, *press, "budget=0.3", n=1)).buckets[0]._layers[0]
        for press in (["press=knorm"], ["press=block", "press.inner=knorm"])
    ]
    alone, blocks = (layer.values[0, :, : layer.end].sum(-1).sort(-1).values for layer in kept)
    assert torch.allclose(alone, blocks)


def test_what_holds_of_the_inner_press_holds_of_the_outer_one() -> None:
    press = compose("press=adakv", "press.inner=criticalkv", "press.inner.inner=lagkv").press
    assert press.name == "adakv_criticalkv_lagkv"
    assert press.needs == [PressNeed.masks]
    assert [feature.name for feature in press.requires] == ["output_projection", "head_size"]
    assert press.degenerate_at_tokens == 4
    assert press.degenerate_when[0].when == "prompt_tokens < 4 + 2 * 128"
    chunk = compose("press=chunk", "press.inner=streaming", "press.method.chunk_length=100").press
    assert "min(prompt_tokens, chunk_length)" in chunk.degenerate_when[-1].when
    block = compose("press=block", "press.inner=knorm").press
    assert block.degenerate_when[-1].reason == "it keeps what knorm keeps"
    dms = compose("press=dms").press
    assert [needed.file for needed in dms.hub] == ["nvidia/KVzap-mlp-{model}:model.safetensors"]


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["press=snapkv", "press.inner=knorm"], "works on no other press, as adakv, block, chunk"),
        (["press=adakv", "press.inner=knrm"], "press.inner=knrm: no such press; there are adakv"),
        (["press=adakv", "press.inner=[snapkv,knorm]"], "type -m press.inner=snapkv,knorm"),
        (["press=composed", "press.inner=[snapkv]", "press.inner.window_size=8"],
         "press.inner.window_size: composed works on snapkv"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_an_inner_press(typed: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told.replace("[", r"\[")):
        compose(*typed)


@pytest.mark.parametrize(
    ("typed", "told", "fits"),
    [
        ("adakv pyramidkv", "takes scores only, and PyramidKVPress does more", "AdaKVPress works"),
        ("adakv adakv", "requires a ScorerPress", "snapkv"),
        ("adakv observed_attention", "no attention weights for ObservedAttentionPress", "tova"),
        ("block snapkv", "changes the order of entries", "works on keydiff, knorm, "),
        ("chunk snapkv", "to positions of the prompt's end", "streaming"),
        ("per_layer pyramidkv", "both set the budgets of layers", "snapkv"),
        ("composed [knorm,snapkv]", "KnormPress leaves them in another", "can be followed by"),
        ("composed [key_rerotation,knorm]", "would leave gaps", "followed by think"),
        ("composed [adakv,think]", "cannot contains AdaKVPress", "can begin with"),
        ("composed [think]", "no budget can be set", "snapkv"),
    ],
)
def test_presses_that_do_not_compose(typed: str, told: str, fits: str) -> None:
    outer, inner = typed.split()
    press = compose(f"press={outer}", f"press.inner={inner}").press
    assert press.method is not None
    with pytest.raises(UserError) as error:
        check_wrapping(press.name, press.method)
    reason, _, listed = str(error.value).partition("; ")
    assert told in reason
    assert fits in listed


def test_every_shipped_wrapper_composes() -> None:
    for press in shipped_presses():
        if press.method is not None:
            check_wrapping(press.name, press.method)


def test_budgets_of_a_threshold_are_refused_in_one_sweep() -> None:
    configs = [compose("press=dms", f"budget={budget}") for budget in (0.5, 0.25)]
    with pytest.raises(UserError, match=r"budget=0.5,0.25: press=dms keeps what its threshold"):
        refuse_dropped(configs)
    refuse_dropped([configs[0], compose("press=dms", "budget=1.0")])
