"""A LoRA folder and a GGUF file are the models that they say, or one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from kvx.data.kv_layout import KVLayout, kv_layout
from kvx.data.model_checks import check_files
from kvx.data.model_folder import files_of
from kvx.data.tokenizer import load_tokenizer, max_context_tokens
from kvx.engines.kvpress import model as loaded_models
from kvx.engines.kvpress.model import load
from kvx.errors import UserError
from tests.conftest import Kvx
from tests.models import POINTER, TINY, change_json, model_config, tiny_model
from tests.test_model_files import cut, logits

FEW = ("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1")
RAW = "adapter_model.safetensors"


@pytest.fixture(autouse=True)
def forget_models() -> None:
    loaded_models._loaded.clear()


def lora(folder: Path, **options: Any) -> torch.Tensor:
    """A random adapter of the embedded model; the logits of the two together."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(TINY)
    settings = {"target_modules": ["q_proj", "v_proj"], "r": 4, "init_lora_weights": False}
    tuned = get_peft_model(base, LoraConfig(**(settings | options))).eval()
    tuned.save_pretrained(folder)
    return logits(tuned)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True, "target_modules": "all-linear"},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["embed_tokens", "k_proj"]},
    ],
)
def test_an_adapter_is_its_base_with_the_adapter_in_it(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    expected = lora(tmp_path / "lora", **options)
    loaded = load(model_config(tmp_path / "lora"))
    assert type(loaded.model).__name__ == "LlamaForCausalLM"  # as presses know it
    found = logits(loaded.model)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, logits(load(model_config(TINY)).model), atol=1e-2)
    assert loaded.tokenizer.encode("the") == load_tokenizer(model_config(TINY)).encode("the")


def test_a_run_of_an_adapter(kvx: Kvx, tmp_path: Path) -> None:
    lora(tmp_path / "lora")
    arguments = ("model=hf", f"model.path={tmp_path / 'lora'}", *FEW, "press=expected_attention",
                 "budget=0.5")  # fmt: skip
    outcome = kvx("run", *arguments)
    assert outcome.code == 0, outcome.err
    assert "merging the adapter in" in outcome.err


def test_an_adapter_brings_its_own_tokenizer_and_finds_a_base_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    lora(folder)
    tiny_model(tmp_path / "lora" / "base")
    change_json(folder / "adapter_config.json", base_model_name_or_path="base")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, folder)
    change_json(folder / "tokenizer_config.json", chat_template="own")
    assert files_of(model_config(folder)).folder == folder / "base"
    assert load(model_config(folder)).tokenizer.chat_template == "own"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base_model_name_or_path": None}, "is an adapter that names no base"),
        ({"base_model_name_or_path": "/nowhere"}, r"no model in /nowhere;.*model=m is an adapter"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type=PROMPT_TUNING adds its own tokens"),
        ({"peft_type": "ZORK"}, "cannot be merged into its base"),
        ({"r": 8}, "cannot be merged into its base: .*size mismatch"),
        ({"target_modules": ["q_proj"]}, r"does not fit its base .*v_proj\.lora_A"),
        ({"target_modules": ["q_proj", "v_proj", "o_proj"]}, r"does not fit .*o_proj\.lora_A"),
        ({"target_modules": ["zork"]}, "cannot be merged into its base: Target modules"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_line(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    lora(tmp_path / "lora")
    change_json(tmp_path / "lora" / "adapter_config.json", **change)
    with pytest.raises(UserError, match=said) as caught:
        load(model_config(tmp_path / "lora"))
    assert "\n" not in str(caught.value)


def test_an_adapters_damaged_files_are_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "lora"
    lora(folder)
    for damage, said in (
        (lambda: cut(folder / RAW, 2000), "is cut off"),
        (lambda: (folder / RAW).write_text(POINTER), "is a git-lfs pointer"),
        (lambda: (folder / RAW).unlink(), f"no {RAW} in"),
    ):
        damage()
        with pytest.raises(UserError, match=said):
            check_files(files_of(model_config(folder)), "m")
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match=r"adapter_config\.json: is not JSON"):
        load(model_config(folder))


def test_a_model_and_an_adapter_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    """transformers would take the adapter's base from wherever it is, and not the weights here."""
    folder = tiny_model(tmp_path / "m")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x"}))
    with pytest.raises(UserError, match=r"holds a model \(model\.safetensors\) and an adapter"):
        load(model_config(folder))


# --- GGUF ----------------------------------------------------------------------------------------

SIZES = {
    "vocab_size": 328, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 1000, "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.2,
}  # fmt: skip
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_model(path: Path, arch: str = "llama", leave_out: str = "-", parts: int = 1) -> Any:
    """A tiny random Llama in transformers, and the same in a GGUF file, as llama.cpp writes it."""
    torch.manual_seed(1)
    config = LlamaConfig(**SIZES)
    model = LlamaForCausalLM(config).eval()
    writer = gguf.GGUFWriter(str(path), arch)
    writer.add_context_length(1000)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(16)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(328)
    writer.add_token_list([f"w{i}" for i in range(328)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if parts > 1:
        writer.add_uint16("split.count", parts)
    for name, value in model.state_dict().items():
        short = name.removesuffix(".weight")
        prefix = ""
        if short.startswith("model.layers."):
            number, _, short = short.removeprefix("model.layers.").partition(".")
            prefix = f"blk.{number}."
        weight = value.numpy()
        if short in ("self_attn.q_proj", "self_attn.k_proj"):  # llama.cpp's order of rotary pairs
            heads = 4 if short.endswith("q_proj") else 2
            pairs = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
            weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        if leave_out not in name:
            writer.add_tensor(f"{prefix}{NAMES[short]}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a tokenizer is, for a GGUF file beside it."""
    made = tmp_path / "g"
    made.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / name, made)
    return made


@pytest.mark.parametrize("path", ["g", "g/a.gguf"])
def test_a_gguf_file_is_the_model_that_it_was_made_from(
    tmp_path: Path, folder: Path, path: str
) -> None:
    model = gguf_model(folder / "a.gguf")
    config = model_config(tmp_path / path, dtype="float32")
    loaded = load(config)
    torch.testing.assert_close(logits(loaded.model), logits(model), rtol=0, atol=1e-6)
    assert loaded.stop_ids == {2}
    assert len(loaded.tokenizer) == len(load_tokenizer(model_config(TINY)))
    assert max_context_tokens(config) == 1000
    assert kv_layout(config) == KVLayout(2 * 2 * 2 * 16 * 4)


def test_a_run_of_a_gguf_file(kvx: Kvx, folder: Path) -> None:
    gguf_model(folder / "a.gguf")
    outcome = kvx(
        "run", "model=hf", f"model.path={folder}/a.gguf", "model.dtype=float32", *FEW,
        "model.max_context_tokens=4096", "press=knorm", "budget=0.5",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err


def overwrite(path: Path, at: int, with_bytes: bytes) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + with_bytes + whole[at + len(with_bytes) :])


def type_of_output(path: Path) -> int:
    """Where the head of the file tells the type of `output.weight`, a matrix."""
    name = b"output.weight"
    return path.read_bytes().index(name) + len(name) + 4 + 2 * 8


def test_a_gguf_file_that_cannot_be_used_is_one_line(folder: Path) -> None:
    path = folder / "a.gguf"
    for make, said in (
        (lambda: cut(path, path.stat().st_size - 1000), "is cut off or damaged"),
        (lambda: cut(path, 500), "is cut off or damaged"),
        # the first key has 2**64 - 1 bytes; a tensor has a type that there is not
        (lambda: overwrite(path, 24, b"\xff" * 8), "is cut off or damaged"),
        (lambda: overwrite(path, type_of_output(path), b"\xe7\x03\0\0"), "is cut off or damaged"),
        (lambda: path.write_text(POINTER), "is a git-lfs pointer"),
        (lambda: path.write_bytes(b"no such thing"), "is not a GGUF file|is a file; give"),
        (lambda: gguf_model(path, "zork"), "architecture zork is not supported"),
        (lambda: gguf_model(path, leave_out="layers.1.mlp"), r"no weights for model\.layers\.1"),
        (lambda: gguf_model(path, parts=3), "is one of 3 parts; join them first"),
    ):
        gguf_model(path)
        make()
        with pytest.raises(UserError, match=said) as caught:
            load(model_config(path))
        assert "\n" not in str(caught.value)


def test_a_gguf_file_needs_a_tokenizer_beside_it(folder: Path) -> None:
    """The one that transformers makes of a GGUF file is not always the model's."""
    gguf_model(folder / "a.gguf")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"a\.gguf brings none that is exact; copy tokenizer\.json"):
        load(model_config(folder))


def test_one_of_several_gguf_files_has_to_be_named(folder: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        gguf_model(folder / name)
    with pytest.raises(UserError, match=r"holds several GGUF files; give one of a\.gguf, b\.gguf"):
        files_of(model_config(folder))
    assert files_of(model_config(folder / "b.gguf")).gguf == folder / "b.gguf"
