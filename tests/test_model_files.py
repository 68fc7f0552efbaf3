"""A model's folder: what is wrong with it is one line, and never a model with random layers."""

import json
import re
import struct
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from kvx.cli.command import compose
from kvx.data.kv_layout import kv_layout
from kvx.data.model_checks import check_files
from kvx.data.model_folder import files_of
from kvx.data.tokenizer import load_tokenizer, max_context_tokens
from kvx.engines.kvpress import model as loaded_models
from kvx.engines.kvpress.model import load
from kvx.errors import UserError
from tests.conftest import Kvx, request_rows
from tests.models import POINTER, TINY, WEIGHTS, change_json, model_config, tiny_model

IDS = torch.tensor([[5, 9, 20, 33, 7]])
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def forget_models() -> None:
    loaded_models._loaded.clear()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
        return found


def cut(path: Path, n_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:n_bytes])


def shard(folder: Path) -> None:
    """The weights in two files and an index."""
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    parts = {"one.safetensors": names[:10], "two.safetensors": names[10:]}
    for file, held in parts.items():
        save_file({n: weights[n] for n in held}, folder / file, {"format": "pt"})
    where = {n: file for file, held in parts.items() for n in held}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / WEIGHTS).unlink()


def to_bin(folder: Path) -> Path:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    return folder / "pytorch_model.bin"


def without(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def sharded(then: Callable[[Path], Any]) -> Callable[[Path], Any]:
    return lambda folder: (shard(folder), then(folder))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda d: cut(d / WEIGHTS, 300_000), r"is cut off or damaged \(incomplete metadata"),
    "cut in the header": (lambda d: cut(d / WEIGHTS, 30), "is cut off or damaged"),
    "seven bytes": (lambda d: cut(d / WEIGHTS, 7), "is cut off or damaged"),
    "empty": (lambda d: cut(d / WEIGHTS, 0), "is empty"),
    "pointer": (lambda d: (d / WEIGHTS).write_text(POINTER), "is a git-lfs pointer"),
    "no safetensors": (
        lambda d: (d / WEIGHTS).write_bytes(struct.pack("<Q", 4) + b"abcd"),
        r"is cut off or damaged \(invalid",
    ),
    "a folder": (lambda d: ((d / WEIGHTS).unlink(), (d / WEIGHTS).mkdir()), "is a directory"),
    "none": (without(WEIGHTS), "no model.safetensors in"),
    "another name": (
        lambda d: (d / WEIGHTS).rename(d / "consolidated.safetensors"),
        "consolidated.safetensors is not what transformers looks for",
    ),
    "bin cut": (lambda d: cut(to_bin(d), 200_000), "is cut off or damaged"),
    "bin pointer": (lambda d: to_bin(d).write_text(POINTER), "is a git-lfs pointer"),
    "shard missing": (
        sharded(without("two.safetensors")),
        "two.safetensors of 2 shards that model.safetensors.index.json names are not in",
    ),
    "shard cut": (sharded(lambda d: cut(d / "two.safetensors", 9000)), "is cut off"),
    "shard pointer": (
        sharded(lambda d: (d / "one.safetensors").write_text(POINTER)),
        "one.safetensors: is a git-lfs pointer",
    ),
    "shard of another model": (
        sharded(lambda d: save_file({"a": torch.zeros(1)}, d / "one.safetensors")),
        "one.safetensors: does not hold lm_head.weight, which model.safetensors.index.json says",
    ),
    "index empty": (sharded(lambda d: (d / INDEX).write_text("{}")), "has no weight_map"),
    "index pointer": (sharded(lambda d: (d / INDEX).write_text(POINTER)), "is a git-lfs pointer"),
    "generation config": (
        lambda d: (d / "generation_config.json").write_text("{"),
        "generation_config.json: is not JSON",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_weights_are_one_line_before_anything_is_loaded(tmp_path: Path, name: str) -> None:
    damage, said = DAMAGE[name]
    folder = tiny_model(tmp_path / "m")
    damage(folder)
    with pytest.raises(UserError, match=said) as caught:
        check_files(files_of(model_config(folder)), "m")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=said):
        load(model_config(folder))


def test_the_line_ends_a_run_with_exit_2_also_where_workers_would_load(
    kvx: Kvx, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / "m")
    cut(folder / WEIGHTS, 300_000)
    few = ("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1")
    for more in ((), ("-m", "hydra/launcher=kvx_local", "budget=1.0,0.5", "press=knorm")):
        outcome = kvx("run", "model=hf", f"model.path={folder}", *few, *more)
        assert outcome.code == 2
        assert outcome.err.splitlines()[-1].startswith(f"kvx run: {folder}/{WEIGHTS}: is cut off")
        assert "worker" not in outcome.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 3}, r"no weights for model\.layers\.2\..* and 10 more, which would"),
        ({"num_hidden_layers": 1}, r"weights that its config\.json leaves out: model\.layers\.1\."),
        ({"attention_bias": False}, r"leaves out: model\.layers\.0\.self_attn\.k_proj\.bias"),
        ({"mlp_bias": True}, r"no weights for model\.layers\.0\.mlp\.down_proj\.bias"),
        ({"intermediate_size": 64}, r"other shapes .*: model\.layers\.0\.mlp\.down_proj\.weight "
                                    r"\[64, 128\] instead of \[64, 64\]"),
        ({"vocab_size": 400}, r"other shapes .*: lm_head\.weight \[328, 64\] instead of"),
        ({"model_type": "zork"}, "model type `zork`"),
        ({"model_type": "t5"}, "t5 has an encoder and a decoder"),
        ({"hidden_act": "zork"}, "cannot be loaded: "),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_the_config_are_one_line(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    folder = tiny_model(tmp_path / "m", **change)
    with pytest.raises(UserError, match=said) as caught:
        load(model_config(folder))
    assert "\n" not in str(caught.value)


def test_weights_that_no_language_model_reads_are_left_alone(tmp_path: Path) -> None:
    """A vision tower, a head for another task, and what older checkpoints stored."""
    folder = tiny_model(tmp_path / "m")
    weights = load_file(folder / WEIGHTS)
    more = ("vision_tower.layers.0.q.weight", "value_head.weight",
            "model.layers.0.self_attn.rotary_emb.inv_freq")  # fmt: skip
    save_file(weights | {n: torch.zeros(2) for n in more}, folder / WEIGHTS, {"format": "pt"})
    expected = logits(load(model_config(TINY)).model)
    assert torch.equal(logits(load(model_config(folder)).model), expected)


@pytest.mark.parametrize("make", [shard, to_bin])
def test_weights_in_other_files_are_the_same_model(tmp_path: Path, make: Any) -> None:
    folder = tiny_model(tmp_path / "modèle モデル")  # and a path that is not ASCII
    make(folder)
    expected = logits(load(model_config(TINY)).model)
    assert torch.equal(logits(load(model_config(folder)).model), expected)


def test_a_model_whose_files_changed_is_loaded_again(tmp_path: Path) -> None:
    """A notebook that trains and measures in one folder."""
    folder = tiny_model(tmp_path / "m")
    before = load(model_config(folder))
    assert load(model_config(folder)) is before
    weights = load_file(folder / WEIGHTS)
    weights["lm_head.weight"] *= 2
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    assert torch.allclose(logits(load(model_config(folder)).model), 2 * logits(before.model))
    change_json(folder / "tokenizer_config.json", chat_template="A")
    assert load(model_config(folder)).tokenizer.chat_template == "A"


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "optimum"),
        ({"quant_method": "awq", "bits": 4}, "gptqmodel"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "compressed-tensors"}, "compressed_tensors"),
        ({"quant_method": "aqlm"}, "aqlm"),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_a_quantised_checkpoint_names_the_library_it_needs(
    tmp_path: Path, config: dict[str, Any], missing: str
) -> None:
    folder = tiny_model(tmp_path / "m", quantization_config=config)
    if find_spec(missing) is not None:
        pytest.skip(f"{missing} is installed")
    named = missing.replace("_", "[-_]")  # the module, or what pip calls it
    said = rf"(?i)cannot be loaded: .*{named}.*(pip install|to install)"
    with pytest.raises(UserError, match=said) as caught:
        load(model_config(folder))
    assert "\n" not in str(caught.value)


def test_a_quantised_checkpoint_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("on a GPU it may well be")
    folder = tiny_model(tmp_path / "m", quantization_config={"bits": 4})
    with pytest.raises(UserError, match=r"^model=m: "):
        load(model_config(folder))


def test_a_checkpoint_in_fp8_is_dequantised_or_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("on a GPU its products may be in FP8")
    size = 128
    config = {"quant_method": "fp8", "weight_block_size": [size, size]}
    plain = tiny_model(tmp_path / "plain")
    folder = tiny_model(tmp_path / "m", quantization_config=config)
    weights, rounded = load_file(folder / WEIGHTS), load_file(plain / WEIGHTS)
    for name, weight in list(weights.items()):
        if name.endswith("_proj.weight"):
            assert max(weight.shape) <= size  # one block
            scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            weights[name] = (weight / scale).to(torch.float8_e4m3fn)
            weights[f"{name}_scale_inv"] = scale.view(1, 1)
            rounded[name] = weights[name].float() * scale
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    try:
        found = logits(load(model_config(folder)).model)
    except UserError as error:  # transformers 5.2 asks for triton first
        assert re.match("model=m: cannot be loaded: .*triton", str(error))  # noqa: PT017
        return
    assert not torch.allclose(found, logits(load(model_config(plain)).model), atol=1e-2)
    save_file(rounded, plain / WEIGHTS, {"format": "pt"})
    loaded_models._loaded.clear()
    torch.testing.assert_close(found, logits(load(model_config(plain)).model))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"model_type": ', "is not JSON"),
        (b"", "is empty"),
        (b"[1, 2]", "is a list, not a JSON object"),
        (b'"text"', "is a str, not a JSON object"),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        (POINTER.encode(), "is a git-lfs pointer"),
        (b'{"max_position_embeddings": 10}', "Should have a `model_type` key"),
    ],
)
def test_a_config_that_is_none_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    folder = tiny_model(tmp_path / "m")
    (folder / "config.json").write_bytes(content)
    config = model_config(folder)
    with pytest.raises(UserError, match=said):
        load(config)
    if b"max_position" not in content:
        for function in (max_context_tokens, kv_layout):
            with pytest.raises(UserError, match=rf"config\.json: {said}"):
                function(config)


@pytest.mark.parametrize("limit", [0, "many", None, -1])
def test_a_model_without_a_length_asks_for_one(tmp_path: Path, limit: Any) -> None:
    config = model_config(tiny_model(tmp_path / "m", max_position_embeddings=limit))
    with pytest.raises(UserError, match=r"set model\.max_context_tokens"):
        max_context_tokens(config)


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", POINTER, "tokenizer.json: is a git-lfs pointer"),
        ("tokenizer.json", '{"version": ', "tokenizer.json: is not JSON"),
        ("tokenizer.json", "{}", "its tokenizer cannot be loaded from"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json: is a list"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: is not JSON"),
        ("tokenizer.json", None, "needs a tokenizer in .*, and there is none"),
    ],
)
def test_a_tokenizer_that_is_none_is_one_line(
    tmp_path: Path, file: str, content: str | None, said: str
) -> None:
    """Without its files transformers makes an empty one, which finds no words."""
    folder = tiny_model(tmp_path / "m")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(UserError, match=said) as caught:
        load_tokenizer(model_config(folder))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_one_line(kvx: Kvx, tmp_path: Path) -> None:
    """On a GPU a token beyond the embedding ends the process."""
    folder = tiny_model(tmp_path / "m", vocab_size=40)
    outcome = kvx("prepare", "model=hf", f"model.path={folder}", "dataset.source.n_examples=20")
    assert outcome.code == 2
    assert "its tokens are not all among the 40 of model=" in outcome.err


def test_a_path_that_holds_no_model_says_what_to_give(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "hub" / "snapshots" / "af31")
    for path, said in (
        (tmp_path / "hub", f"no model in {tmp_path}/hub; did you mean {folder}"),
        (folder / WEIGHTS, "is a file; give a model's folder"),
        (tmp_path, r"set model\.path to a folder with config\.json"),
        (tmp_path / "nowhere", "no model in"),
    ):
        with pytest.raises(UserError, match=said):
            files_of(model_config(path))
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"has model\.safetensors but no config\.json"):
        files_of(model_config(folder))


# --- Python code of the model's own --------------------------------------------------------------

CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}


def test_a_models_own_code_runs_only_if_that_is_said_and_nothing_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a run asks nothing"))
    folder = tiny_model(
        tmp_path / "own", auto_map=AUTO_MAP, model_type="own", architectures=["OwnForCausalLM"]
    )
    (folder / "own.py").write_text(CODE)
    with pytest.raises(UserError, match=r"set model\.trust_remote_code=true") as caught:
        load(model_config(folder))
    assert "\n" not in str(caught.value)
    loaded = load(model_config(folder, trust_remote_code=True))
    assert type(loaded.model).__name__ == "OwnForCausalLM"
    assert torch.equal(logits(loaded.model), logits(load(model_config(TINY)).model))


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device_map", ["auto", "cpu", {"": "cpu"}, {"model": "cpu", "lm_head": "cpu"}]
)
def test_a_device_map_places_the_model(device_map: Any) -> None:
    if torch.cuda.is_available():
        pytest.skip("auto is the GPU")
    loaded = load(model_config(TINY, device_map=device_map))
    assert loaded.devices == (torch.device("cpu"),)
    expected = logits(load(model_config(TINY)).model)
    assert torch.equal(logits(loaded.model), expected)


def test_a_run_with_a_device_map_gives_the_same_answers_and_points(kvx: Kvx) -> None:
    few = ("press=snapkv", "budget=0.5", "dataset.source.n_examples=20",
           "dataset.sampling.n_per_bin=1")  # fmt: skip
    assert kvx("run", *few).code == 0
    outcome = kvx("run", *few, "model.device_map=auto")
    assert "nothing to do" in outcome.err
    outcome = kvx("run", *few, "model.device_map=auto", "paths.output=other")
    assert outcome.code == 0, outcome.err
    assert "loading model tiny_recall on device_map=auto" in outcome.err


@pytest.mark.parametrize(
    ("device_map", "said"),
    [
        ("zork", "cannot be loaded: "),
        ({"model": "cpu", "lm_head": "disk"}, r"puts layers of model=m on disk"),
    ],
)
def test_a_device_map_that_cannot_be_is_one_line(device_map: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        load(model_config(TINY, device_map=device_map))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["model.device_map=3"], r"model\.device_map=3: use auto"),
        (["model.device_map=[0,1]"], r"model\.device_map=\[0, 1\]: use auto"),
        (["model.device_map=auto", "model.device=cuda"], "conflicts with model.device_map; set"),
    ],
)
def test_a_device_map_is_a_word_or_a_mapping(typed: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        compose(*typed)
    assert dict(compose("model.device_map={model: 0, lm_head: 1}").model.device_map) == {
        "model": 0,
        "lm_head": 1,
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    folder = tiny_model(tmp_path / "m")
    weights = load_file(folder / WEIGHTS)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    said = r"hold NaN or infinite weights in model\.layers\.1\.mlp\.up_proj\.weight; fetch"
    with pytest.raises(UserError, match=said):
        load(model_config(folder))


def test_numbers_too_large_for_the_type_fail_their_requests(kvx: Kvx, tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "m")
    weights = load_file(folder / WEIGHTS)
    for name in ("up_proj", "gate_proj", "down_proj"):
        weights[f"model.layers.0.mlp.{name}.weight"] *= 3e4  # finite; their products are not
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    kvx(
        "run", "-m", "experiment=demo", "experiment_name=q", "measure=quality", "model=hf",
        f"model.path={folder}", "model.dtype=float16", "model.device=cpu", "budget=1.0,0.5",
        "press=knorm", "dataset.source.n_examples=30", "dataset.sampling.n_per_bin=1",
        "decoding.max_new_tokens=4",
    )  # fmt: skip
    rows = request_rows(Path("outputs/runs/q"))
    assert set(rows["error_type"]) == {"ENGINE_ERROR"}
    assert (
        rows["error_message"].str.startswith("FloatingPointError: the model's logits are NaN").all()
    )
