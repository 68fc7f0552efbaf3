"""Which models load and how: multimodal ones as text, attention by class, refusals in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from kvx.cli.command import compose
from kvx.data.prompt import PromptBuilder
from kvx.data.tokenizer import load_tokenizer
from kvx.engines.kvpress import model as loaded_models
from kvx.engines.kvpress.architecture import auto_class, decoder_of
from kvx.engines.kvpress.model import load
from kvx.errors import UserError
from tests import families
from tests.conftest import Kvx
from tests.families import BASE, FOUR, LLAMA4, VISION, WIDE, Family, write
from tests.models import TINY, WEIGHTS, change_json, model_config, tiny_model
from tests.test_engine import answers, recall
from tests.test_model_files import logits

FEW = ("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1")
NEW = 8
VISUAL = {  # these are not in tests.families
    "qwen3_vl": Family(
        "qwen3_vl",
        {**WIDE, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
        "mrope_section": [4, 6, 6]}, "model_type": "qwen3_vl_text"},
        {"hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 2,
        "out_hidden_size": 64, "deepstack_visual_indexes": [0]},
        {"image_token_id": 330, "video_token_id": 331, "vision_start_token_id": 332,
        "vision_end_token_id": 333},
    ),
    "llama4": Family(
        "llama4", {**LLAMA4, "model_type": "llama4_text"},
        {**VISION, "vision_output_dim": 32, "projector_input_dim": 32,
        "projector_output_dim": 32},
    ),
    "idefics3": Family(
        "idefics3", {**WIDE, "model_type": "llama"}, VISION, {"image_token_id": 330},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def forget_models() -> None:
    loaded_models._loaded.clear()


@torch.no_grad()
def greedy(model: Any, ids: list[int], stops: frozenset[int]) -> list[int]:
    """New tokens, without a cache: each from a pass over all that came before."""
    found: list[int] = []
    while len(found) < NEW and not (found and found[-1] in stops):
        given = torch.tensor([ids + found])
        found.append(int(model(input_ids=given, use_cache=False).logits[0, -1].argmax()))
    return found


@pytest.mark.parametrize("name", ["gemma3", "mistral3", "qwen2_5_vl", *VISUAL])
def test_a_multimodal_model_answers_text_as_its_own_class_does(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in VISUAL:
        monkeypatch.setitem(families.FAMILIES, name, VISUAL[name])
    folder = write(name, tmp_path / "m")
    work = recall(
        tmp_path, "model=hf", f"model.path={folder}", f"decoding.max_new_tokens={NEW}", n=4
    )
    own = AutoModelForImageTextToText.from_pretrained(folder).eval()
    loaded = load(work.point.config.model)
    builder = PromptBuilder(loaded.tokenizer, work.point.config, None)
    examples = {example.example_id: example for _, example in work.requests}
    compared = set()
    for response in answers(work):
        parts = builder.parts(examples[response.request.entry.example_id])
        ids = [*parts.compressed_ids, *parts.rest_ids]
        expected = greedy(own, ids, loaded.stop_ids)
        assert list(response.token_ids or ()) == expected
        compared.add(tuple(expected))
    assert len(compared) > 1  # it tells prompts apart
    assert (
        loaded.decoder is loaded.model.model or loaded.decoder is loaded.model.model.language_model
    )


def test_an_attention_implementation_is_what_the_class_has(tmp_path: Path) -> None:
    """GPT-OSS has no sdpa, and the sdpa of transformers 5.2 leaves out Gemma 2's cap of logits."""
    for name, own in (("gpt_oss", "eager"), ("gemma2", "eager"), ("llama", "sdpa")):
        loaded = load(model_config(write(name, tmp_path / name)))
        loaded.set_attention("auto")
        assert loaded.model.config._attn_implementation == own
        found = logits(loaded.model)
        eager = AutoModelForCausalLM.from_pretrained(
            tmp_path / name, attn_implementation="eager"
        ).eval()
        torch.testing.assert_close(found, logits(eager), rtol=0, atol=1e-4)
        if own == "eager":
            with pytest.raises(UserError, match=r"^model\.attn_implementation=sdpa: "):
                loaded.set_attention("sdpa")


def test_a_run_of_a_model_without_sdpa(kvx: Kvx, tmp_path: Path) -> None:
    folder = write("gpt_oss", tmp_path / "m")
    outcome = kvx("run", "model=hf", f"model.path={folder}", *FEW)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("asked", ["paged|sdpa", "paged|eager", "flush", "kernels-community/x"])
def test_an_attention_that_answers_otherwise_is_no_choice(asked: str) -> None:
    """transformers runs what is paged without its cache, and answers something else."""
    with pytest.raises(UserError, match="use one of auto, eager, sdpa, flex_attention, "):
        compose(f"model.attn_implementation='{asked}'")


# --- what is no decoder with a KV cache ----------------------------------------------------------

SMALL = {
    "vocab_size": 328, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4,
}  # fmt: skip
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "bert": ("bert", SMALL, "bert is an encoder"),
    "roberta": ("roberta", {**SMALL, "architectures": ["RobertaForMaskedLM"]}, "is an encoder"),
    "distilbert": ("distilbert", {"n_layers": 2, "dim": 64, "n_heads": 4}, "is an encoder"),
    "t5": ("t5", {"d_model": 64, "num_layers": 2}, "t5 has an encoder and a decoder"),
    "bart": ("bart", {"d_model": 64}, "bart has an encoder and a decoder"),
    "mamba": ("mamba", SMALL, "mamba has no attention layers with a KV cache"),
    "mamba2": ("mamba2", {**SMALL, "num_heads": 8, "head_dim": 16}, "has no attention layers"),
    "rwkv": ("rwkv", SMALL, "rwkv has no attention layers with a KV cache"),
    "openai-gpt": ("openai-gpt", {"n_layer": 2}, "has no attention layers with a KV cache"),
    "lfm2 of convolutions": (
        "lfm2", {**BASE, **FOUR, "layer_types": ["conv"] * 4}, "has no attention layers",
    ),
    "gpt2": ("gpt2", {"n_layer": 2}, "gpt2 keeps its layers where presses do not look"),
    "gpt_neox": ("gpt_neox", SMALL, "gpt_neox keeps its layers where presses do not look"),
    "opt": ("opt", SMALL, "opt keeps its layers where presses do not look"),
    "clip": ("clip", {}, "clip is no language model"),
    "both ways": (
        "gemma3_text", {**BASE, "use_bidirectional_attention": True}, "see later ones too",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_keeps_no_cache_that_a_press_could_compress_is_refused_without_its_weights(
    kvx: Kvx, tmp_path: Path, name: str
) -> None:
    kind, fields, said = REFUSED[name]
    folder = tiny_model(tmp_path / "m")
    (folder / "config.json").unlink()
    AutoConfig.for_model(kind, **fields).save_pretrained(folder)
    with pytest.raises(UserError, match=f"^model=m: .*{said}") as caught:
        load(model_config(folder))
    assert "\n" not in str(caught.value)
    outcome = kvx("run", "model=hf", f"model.path={folder}", *FEW)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err


def test_the_kind_is_told_before_what_else_such_a_folder_lacks(kvx: Kvx, tmp_path: Path) -> None:
    """A T5 names no length, a BERT is missing its head: neither is what is wrong with it."""
    for kind, said in (("t5", "has an encoder and a decoder"), ("mamba", "has no attention")):
        folder = tiny_model(tmp_path / kind)
        (folder / WEIGHTS).unlink()
        AutoConfig.for_model(kind).save_pretrained(folder)
        outcome = kvx("run", "model=hf", f"model.path={folder}", *FEW)
        assert outcome.code == 2
        assert said in outcome.err.splitlines()[-1]


def test_a_hybrid_keeps_its_class_and_body(tmp_path: Path) -> None:
    for name in ("granite_hybrid", "jamba", "zamba2", "lfm2", "minimax"):
        folder = write(name, tmp_path / name)
        config = AutoConfig.from_pretrained(folder)
        assert auto_class(config) is AutoModelForCausalLM
        loaded = load(model_config(folder))
        assert len(decoder_of(loaded.model).layers) == 4


# --- the id of a model from the hub --------------------------------------------------------------


@pytest.mark.parametrize("given", ["id", "folder"])
def test_a_model_in_the_hubs_cache_keeps_its_id(
    tmp_path: Path, given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Presses look up files by it."""
    commit = "4d7a" * 10
    repo = tmp_path / "hub" / "models--kvx--tiny-recall"
    folder = tiny_model(repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = Path("kvx/tiny-recall") if given == "id" else folder
    loaded = load(model_config(path))
    assert loaded.model.config.name_or_path == "kvx/tiny-recall"
    assert load(model_config(TINY)).model.config.name_or_path == str(TINY)


# --- the end of an answer, and other files that transformers takes as they are -------------------


def ends(folder: Path, told: Any) -> frozenset[int]:
    change_json(folder / "generation_config.json", eos_token_id=told)
    return load(model_config(folder)).stop_ids


def test_an_answer_ends_where_the_files_say(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_model(tmp_path / "m")
    own = load_tokenizer(model_config(folder)).eos_token_id
    assert ends(folder, 7) == {7}
    assert ends(folder, [7, 5, 100_000]) == {7, 5}  # the last is none of its tokens
    assert ends(folder, None) == ends(folder, []) == {own}
    assert "names no token that ends an answer" not in caplog.text
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert ends(folder, None) == frozenset()
    assert "names no token that ends an answer" in caplog.text


@pytest.mark.parametrize("told", ["</s>", [2, "</s>"], 100_000, -1, True, 2.5])
def test_an_end_that_is_no_token_is_one_line(tmp_path: Path, told: Any) -> None:
    """Answers would go on to max_new_tokens."""
    folder = tiny_model(tmp_path / "m")
    with pytest.raises(UserError, match=r"eos_token_id=.* is none of its 328 tokens"):
        ends(folder, told)


@pytest.mark.parametrize(
    ("vocabulary", "said"),
    [({}, "cannot be loaded"), ({"[UNK]": 0}, "finds no token in|cannot be loaded")],
)
def test_a_tokenizer_without_words_is_one_line(
    tmp_path: Path, vocabulary: dict[str, int], said: str
) -> None:
    folder = tiny_model(tmp_path / "m")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"] |= {"vocab": vocabulary, "unk_token": "[NO]"}
    tokenizer["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=f"its tokenizer .*({said})") as caught:
        load_tokenizer(model_config(folder))
    assert "\n" not in str(caught.value)


def test_what_transformers_only_warns_of_is_an_error(tmp_path: Path) -> None:
    """It would load the weights as if they were not quantised."""
    folder = tiny_model(tmp_path / "a", quantization_config={"quant_method": "zork"})
    with pytest.raises(UserError, match="is quantised by zork, which this transformers does not"):
        load(model_config(folder))
    folder = tiny_model(tmp_path / "b")
    weights = load_file(folder / WEIGHTS)
    name = "model.layers.0.mlp.down_proj.weight"
    weights[name] = (weights[name] * 10).to(torch.int8)
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=rf"holds {name} as I8, but config\.json says nothing of"):
        load(model_config(folder))


def test_a_config_that_is_none_is_not_called_a_tokenizer(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m", dtype="float12", torch_dtype="float12")
    with pytest.raises(UserError, match=r"config\.json cannot be used: .*float12"):
        load_tokenizer(model_config(folder))


def test_weights_of_a_multimodal_model_are_checked_too(tmp_path: Path) -> None:
    folder = write("mistral3", tmp_path / "m")
    whole = load_file(folder / WEIGHTS)
    lost = next(n for n in sorted(whole) if "layers.1.mlp" in n and "vision" not in n)
    save_file({n: w for n, w in whole.items() if n != lost}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=r"hold no weights for .*layers\.1\.mlp"):
        load(model_config(folder))
    more = {lost.replace("layers.1", "layers.7"): whole[lost].clone()}
    save_file(whole | more, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(UserError, match=r"config\.json leaves out: .*layers\.7\.mlp"):
        load(model_config(folder))


def test_tied_embeddings_and_layers_that_predict_ahead_are_no_fault(tmp_path: Path) -> None:
    """Gemma's head is its embedding; GLM stores a layer that only speculative decoding reads."""
    folder = write("llama3_rope", tmp_path / "tied")
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)
    model = load(model_config(folder)).model
    assert model.lm_head.weight is model.get_input_embeddings().weight
    for name in ("glm4_moe", "deepseek_v3"):
        folder = write(name, tmp_path / name)
        change_json(folder / "config.json", num_nextn_predict_layers=1)
        whole = load_file(folder / WEIGHTS)
        last = {n: w for n, w in whole.items() if ".layers.2.self_attn" in n}
        assert last
        ahead = {n.replace(".layers.2.", ".layers.3."): w.clone() for n, w in last.items()}
        save_file(whole | ahead, folder / WEIGHTS, {"format": "pt"})
        load(model_config(folder))
