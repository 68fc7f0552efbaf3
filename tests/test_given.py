"""A press that writes into what it is given changes no other point, whatever their order."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import kvpress
import pytest
import torch
from kvpress import KnormPress, KVgradPress, SnapKVPress
from kvpress.pipeline import KVPressTextGenerationPipeline

from kvx.config.press_choices import PressNeed
from kvx.config.schema import PressConfig
from kvx.engines.base import PointWork
from kvx.engines.kvpress.compression import compressed
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.given import may_write
from kvx.engines.kvpress.layers import CachedLayer
from kvx.engines.kvpress.linear import fast_linears, own_linears
from kvx.engines.kvpress.transformers_versions import kvpress_arguments, kvpress_hooks
from kvx.points import Request
from tests.conftest import Kvx
from tests.models import tiny_model
from tests.test_engine import answers, recall
from tests.test_presses import ARGUMENTS, EVERY, REFUSED


@dataclass
class Writing(KnormPress):  # type: ignore[misc]
    """Writes into all it is given, after it has scored it."""

    def compress(
        self, module: Any, hidden_states: Any, keys: Any, values: Any, attentions: Any, kwargs: Any
    ) -> Any:
        kept = super().compress(module, hidden_states, keys, values, attentions, kwargs)
        cos, sin = kwargs["position_embeddings"]
        for given in (hidden_states, keys, values, cos, sin, kwargs["hidden_states"]):
            given.fill_(0.25)
        return kept


@dataclass
class Reading(KnormPress):  # type: ignore[misc]
    """The same without writing."""


def other_press(work: PointWork, name: str, target: str) -> PointWork:
    press = PressConfig(name=name, method={"_target_": target})
    point = replace(work.point, config=replace(work.point.config, press=press))
    return PointWork(point, tuple((Request(point, r.entry), e) for r, e in work.requests))


def texts(*work: PointWork) -> dict[str, list[list[int]]]:
    """By press, the tokens of all requests in the order of their examples."""
    found: dict[str, dict[str, list[int]]] = {}
    for response in answers(*work):
        name = response.request.point.config.press.name
        assert response.token_ids is not None
        found.setdefault(name, {})[response.request.entry.example_id] = response.token_ids
    return {name: [tokens[i] for i in sorted(tokens)] for name, tokens in found.items()}


@pytest.fixture(scope="module")
def snapkv(tmp_path_factory: pytest.TempPathFactory) -> PointWork:
    more = ("press=snapkv_w16", "budget=0.4", "decoding.max_new_tokens=12")
    return recall(tmp_path_factory.mktemp("given"), *more, n=6)


def test_a_writing_press_changes_no_neighbour_whatever_their_order(snapkv: PointWork) -> None:
    writing = other_press(snapkv, "writing", "tests.test_given.Writing")
    reading = other_press(snapkv, "writing", "tests.test_given.Reading")
    alone = texts(snapkv)["snapkv_w16"]
    expected = texts(reading)["writing"]
    assert alone != expected
    for order in ((writing, snapkv), (snapkv, writing)):
        found = texts(*order)
        assert found["snapkv_w16"] == alone
        assert found["writing"] == expected


def test_only_presses_of_kvpress_that_write_nothing_get_the_tensors_themselves() -> None:
    assert not may_write(KnormPress(0.5))
    assert not may_write(kvpress.KeyRerotationPress(SnapKVPress(0.5)))
    assert may_write(kvpress.ThinKPress(0.5))
    assert may_write(Writing(0.5))
    assert may_write(kvpress.ChunkPress(Writing(0.5)))


# they need files of a hub, a prepared tokenizer, or a run of their own
NOT_ALONE = {
    "ExpectedAttentionStatsPress", "FastKVzipPress", "KVzapPress", "LUKVPress", "QFilterPress",
    "FinchPress", "DuoAttentionPress", "KVComposePress", "KVzipPress", "KVgradPress",
    "RestoreKVPress", "DMSPress", "SimLayerKVPress", "CAMPress", "PrefillDecodingPress",
    "DecodingPress", "CompressionRatioDecodingPress", "BasePress", "ScorerPress",
    "ObservedAttentionPress", "ComposedPress", "PerLayerCompressionPress",
}  # fmt: skip


@pytest.mark.parametrize("name", [n for n in EVERY if n not in NOT_ALONE])
def test_kvpress_s_own_write_into_nothing_that_they_are_given(name: str) -> None:
    """Checked on the embedded model; ThinK gets copies, because it does."""
    import hydra.utils
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("kvx/assets/tiny_recall")
    method = {"_target_": f"kvpress.{name}", **ARGUMENTS.get(name, {})}
    press = hydra.utils.instantiate(method, _convert_="all")
    if name == "ThinKPress":
        press.key_channel_compression_ratio = 0.5
    elif name not in REFUSED:
        press.compression_ratio = 0.5
    changed, calls = [], 0

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal calls
        kwargs = kvpress_arguments(module, kwargs)
        layer = kwargs["past_key_values"].layers[module.layer_idx]
        given = [layer.keys, layer.values, kwargs["hidden_states"], *kwargs["position_embeddings"]]
        before = [tensor.clone() for tensor in given]
        kind = CachedLayer(module.layer_idx, module, 0)
        compressed(press, module, kind, [kind], (layer.keys, layer.values), output[1], kwargs)
        changed.extend(not torch.equal(a, b) for a, b in zip(given, before, strict=True))
        calls += 1

    for layer in model.model.layers:
        layer.self_attn.rotary_emb = model.model.rotary_emb
        layer.self_attn.register_forward_hook(hook, with_kwargs=True)
    with torch.inference_mode():
        model.model(input_ids=torch.arange(3, 203)[None] % 300, use_cache=True)
    assert calls == len(model.model.layers)
    assert not any(changed)


def test_gradients_pass_through_a_model_that_was_made_fast() -> None:
    """oneDNN's linear layers have no autograd; a press that needs it gets torch's own."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained("kvx/assets/tiny_recall")
    vectors = model.model.embed_tokens(torch.arange(3, 20)[None]).detach().requires_grad_()
    fast = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    with fast_linears(model):
        replaced = [m for m in fast if "forward" in vars(m)]
        with own_linears(model):
            assert not any("forward" in vars(m) for m in fast)
            model.model(inputs_embeds=vectors).last_hidden_state.square().sum().backward()
        assert [m for m in fast if "forward" in vars(m)] == replaced
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() > 0


def test_a_press_that_differentiates_answers_as_in_kvpress(tmp_path: Path) -> None:
    work = recall(tmp_path, "press=knorm", "budget=0.5", "decoding.max_new_tokens=16", n=4)
    press = PressConfig(
        name="kvgrad", method={"_target_": "kvpress.KVgradPress"},
        needs=[PressNeed.changes_forward, PressNeed.masks],
    )  # fmt: skip
    point = replace(work.point, config=replace(work.point.config, press=press))
    work = PointWork(point, tuple((Request(point, r.entry), e) for r, e in work.requests))
    engine = KVPressEngine(point.config)
    engine.check([point])
    pipeline = KVPressTextGenerationPipeline(
        model=engine.loaded.model, tokenizer=engine.loaded.tokenizer
    )
    examples = {example.example_id: example for _, example in work.requests}
    for response in answers(work):
        example = examples[response.request.entry.example_id]
        with kvpress_hooks(pipeline.model):
            theirs = pipeline(
                example.context, question=f" ? {example.question}", answer_prefix="",
                press=KVgradPress(0.5), max_new_tokens=16,
            )["answer"]  # fmt: skip
        assert (response.error_message, response.text) == (None, theirs)
    assert not engine.loaded.model.model.embed_tokens.weight.is_inference()


CODE = """
from transformers import LlamaForCausalLM


class Mixed(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits - 0.5 * out.logits.mean(0, keepdim=True)
        return out
"""


def test_a_controller_on_a_model_that_cannot_share_is_refused(kvx: Kvx, tmp_path: Path) -> None:
    """Rows change each other there, so they run alone, where no controller follows them."""
    folder = tiny_model(tmp_path / "own", auto_map={"AutoModelForCausalLM": "own.Mixed"})
    (folder / "own.py").write_text(CODE)
    ask = (
        "model=hf", f"model.path={folder}", "model.name=own", "model.trust_remote_code=true",
        "press=knorm", "budget=0.5", "dataset.source.n_examples=20", "decoding.max_new_tokens=4",
        "dataset.sampling.n_per_bin=1",
    )  # fmt: skip
    ran = kvx("run", *ask, "controller=reactive")
    assert ran.code == 2
    (line,) = [line for line in ran.err.splitlines() if "controller=reactive" in line]
    assert line.startswith("kvx run: controller=reactive: cannot act on model=own: it has ")
    ran = kvx("run", *ask)
    assert ran.code == 0
    assert "requests run one at a time" in ran.err
