"""A model is known by every file that `from_pretrained` would read, as it is now."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvx.config.folders import package_dir
from kvx.config.language_model import ModelConfig
from kvx.data import model_identity
from kvx.data.frozen_examples import load_examples
from kvx.data.tokenizer import load_tokenizer, model_hash, tokenizer_hash
from kvx.errors import UserError
from kvx.identity import file_hashes
from kvx.identity import hazard_files as hazard_files

TINY = package_dir() / "assets" / "tiny_recall"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "tiny"))


@pytest.fixture
def remembering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, where every file counts as settled and large."""
    monkeypatch.setenv("KVX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "_known", {})
    monkeypatch.setattr(file_hashes, "TICK_NS", 0)
    monkeypatch.setattr(file_hashes, "LARGE_BYTES", 0)
    return tmp_path / "cache" / file_hashes.FOLDER


def known(path: Path, name: str = "m") -> str:
    return model_hash(ModelConfig(name, str(path)))


def test_the_ids_of_models_that_were_read_whole_before_stay(tiny: Path) -> None:
    assert known(TINY) == known(tiny) == "5ee64393bc61"


def test_pickled_weights_are_the_model_where_there_are_no_others(tiny: Path) -> None:
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    before = known(tiny)
    raw = bytearray((tiny / "pytorch_model.bin").read_bytes())
    raw[-1] ^= 1
    (tiny / "pytorch_model.bin").write_bytes(bytes(raw))
    assert known(tiny) != before
    assert tiny / "pytorch_model.bin" in model_identity.files(tiny)


def test_what_is_not_read_does_not_count(tiny: Path) -> None:
    before = known(tiny)
    for name in ("README.md", "training_args.bin", "pytorch_model.bin", "trainer_state.json"):
        (tiny / name).write_text("{}")
    (tiny / "checkpoint-5").mkdir()
    (tiny / "checkpoint-5" / "model.safetensors").write_text("x")
    assert known(tiny) == before


def test_one_byte_of_large_weights_counts(tiny: Path) -> None:
    """100 MB with one other bias: between the pieces that were looked at before."""
    large = tiny / "model.safetensors"
    with large.open("r+b") as file:
        file.truncate(105_000_000)
    hashes = set()
    for at in (2_000_001, 33_333_333, 104_999_999):
        with large.open("r+b") as file:
            file.seek(at)
            file.write(b"\x01")
        hashes.add(known(tiny))
    assert len(hashes) == 3


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "chat_template.jinja", "additional_chat_templates/tool.jinja", "vocab.txt",
        "sentencepiece.bpe.model", "qwen.tiktoken", "added_tokens.json", "processor_config.json",
        "shards/part.safetensors", "my_own_vocabulary.dat", "modeling_tiny.py", "adapter_model.bin",
        "special_tokens_map.json", "quantize_config.json", "spiece.model",
    ],
)  # fmt: skip
def test_every_file_that_would_be_read_counts(tiny: Path, name: str) -> None:
    index = {"weight_map": {"a": "shards/part.safetensors"}}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((tiny / "config.json").read_text())
    (tiny / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "m.M"}}))
    own = json.loads((tiny / "tokenizer_config.json").read_text())
    (tiny / "tokenizer_config.json").write_text(json.dumps(own | {"x": "my_own_vocabulary.dat"}))
    before, path = known(tiny), tiny / name
    path.parent.mkdir(exist_ok=True)
    text = path.read_text() + " " if path.exists() else "{}"
    path.write_text(text)
    there = known(tiny)
    path.write_text(text + " ")
    assert len({before, there, known(tiny)}) == 3


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", "chat_templates/a.jinja"])
def test_a_tokenizer_is_known_by_all_of_its_files(tiny: Path, name: str) -> None:
    model = ModelConfig("m", str(tiny))
    before, path = tokenizer_hash(model), tiny / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(path.read_text() + " " if path.exists() else "a")
    assert tokenizer_hash(model) != before
    (tiny / "model.safetensors").write_bytes(b"")
    assert tokenizer_hash(model) == tokenizer_hash(model) != before


def test_an_adapter_is_known_by_itself_and_its_base(tmp_path: Path, tiny: Path) -> None:
    adapter = tmp_path / "lora"
    adapter.mkdir()
    settings = {"base_model_name_or_path": str(tiny), "r": 8}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    (adapter / "adapter_model.safetensors").write_bytes(b"one")
    hashes = [known(adapter)]
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"r": 16}))
    hashes.append(known(adapter))
    (adapter / "adapter_model.safetensors").write_bytes(b"two")
    hashes.append(known(adapter))
    (tiny / "generation_config.json").write_text("{}")
    hashes.append(known(adapter))
    assert len(set(hashes)) == 4
    assert tokenizer_hash(ModelConfig("m", str(adapter))) == tokenizer_hash(
        ModelConfig("m", str(tiny))
    )


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    one, two = tmp_path / "one.gguf", tmp_path / "two.gguf"
    one.write_bytes(b"GGUF1")
    two.write_bytes(b"GGUF2")
    assert known(one) != known(two)
    two.unlink()
    before = known(tmp_path)
    one.write_bytes(b"GGUF3")
    assert known(tmp_path) != before
    parts = [tmp_path / f"big-0000{i}-of-00002.gguf" for i in (1, 2)]
    for part in parts:
        part.write_bytes(b"GGUF")
    assert model_identity.files(parts[0]) == parts


def test_one_process_sees_a_folder_as_it_is_now(tiny: Path) -> None:
    """Same length, same time of modification, same inode: as a training in a notebook leaves it."""
    weights = tiny / "model.safetensors"
    stat = weights.stat()
    before, raw = known(tiny), bytearray(weights.read_bytes())
    raw[-1] ^= 1
    with weights.open("r+b") as file:
        file.write(raw)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert known(tiny) != before


def test_a_tokenizer_is_loaded_again_when_its_files_change(tiny: Path) -> None:
    model = ModelConfig("m", str(tiny))
    one = load_tokenizer(model)
    assert load_tokenizer(model) is one
    path = tiny / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}))
    assert load_tokenizer(model).chat_template == "{{ messages }}" != one.chat_template


def test_examples_are_read_again_when_they_change(tmp_path: Path) -> None:
    from kvx.store import schemas
    from kvx.store.shards import write_table

    row = {"example_id": "a", "context": "c", "question": "q", "answers": ["x"], "cluster": "k",
           "meta_json": "{}"}  # fmt: skip
    for answer in ("x", "y"):
        write_table(tmp_path / "examples.parquet", [row | {"answers": [answer]}], schemas.EXAMPLES)
        assert load_examples(tmp_path)["a"].answers == (answer,)


def test_a_hazard_model_is_known_as_it_is_now(tmp_path: Path) -> None:
    for name in (hazard_files.MODEL, hazard_files.CARD):
        shutil.copy(hazard_files.DEFAULT / name, tmp_path)
    before, stat = hazard_files.identity(tmp_path), (tmp_path / hazard_files.CARD).stat()
    text = (tmp_path / hazard_files.CARD).read_text()
    (tmp_path / hazard_files.CARD).write_text(text.replace("1", "2", 1))
    os.utime(tmp_path / hazard_files.CARD, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hazard_files.identity(tmp_path) != before


def test_a_hash_is_remembered_and_a_second_process_need_not_read(
    tiny: Path, remembering: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = file_hashes.sha256(tiny / "model.safetensors")
    monkeypatch.setattr(file_hashes, "_known", {})  # what another process begins with
    monkeypatch.setattr(file_hashes, "sha256_file", lambda path: pytest.fail(f"read {path}"))
    assert file_hashes.sha256(tiny / "model.safetensors") == first


@pytest.mark.parametrize("damage", ["", "{", "[1, 2, 3]", "null", "flip"])
def test_a_damaged_memory_is_read_past(
    tiny: Path, remembering: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    first = file_hashes.sha256(tiny / "config.json")
    (entry,) = remembering.iterdir()
    entry.write_text(entry.read_text().replace(first, "0" * 64) if damage == "flip" else damage)
    monkeypatch.setattr(file_hashes, "_known", {})
    assert file_hashes.sha256(tiny / "config.json") == first


def test_a_cache_that_cannot_be_written_costs_nothing_else(
    tiny: Path, remembering: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembering.parent.mkdir(exist_ok=True)
    remembering.write_text("a file where a folder should be")
    assert len(file_hashes.sha256(tiny / "config.json")) == 64


def test_many_writers_leave_one_whole_entry(tiny: Path, remembering: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from kvx.identity import file_hashes\n"
        "file_hashes.LARGE_BYTES = file_hashes.TICK_NS = 0\n"
        "for _ in range(200):\n"
        "    file_hashes._known.clear(); file_hashes._remember("
        "file_hashes.signature(Path(sys.argv[1])), 'f' * 64)\n"
    )
    command = [sys.executable, "-c", code, str(tiny / "config.json")]
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: subprocess.run(command, check=False), range(3)))
    assert [d.returncode for d in done] == [0, 0, 0]
    (entry,) = remembering.iterdir()
    assert json.loads(entry.read_text())[1] == "f" * 64


def test_a_file_that_changes_while_it_is_read_is_no_model(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny / "config.json"

    def growing(file: Path) -> str:
        with file.open("a") as handle:
            handle.write(" ")
        return "0" * 64

    monkeypatch.setattr(file_hashes, "sha256_file", growing)
    with pytest.raises(UserError, match="changes while being read; wait until it is written"):
        file_hashes.sha256(path)


def altered_hazard_model(folder: Path) -> None:
    """Another threshold in the card, in a file of the same length."""
    path = folder / hazard_files.CARD
    card = json.loads(path.read_text())
    card["thresholds"]["balanced"]["hazard"] = 0.123
    path.write_text(json.dumps(card))


def test_an_engine_keeps_its_hazard_model_and_the_next_one_reads_anew(tmp_path: Path) -> None:
    from kvx.engines.kvpress.guarded import hazard_model, renew_hazard_models

    for name in (hazard_files.MODEL, hazard_files.CARD):
        shutil.copy(hazard_files.DEFAULT / name, tmp_path)
    before = hazard_model(str(tmp_path))
    altered_hazard_model(tmp_path)
    assert hazard_model(str(tmp_path)) is before
    renew_hazard_models()
    assert hazard_model(str(tmp_path)).threshold("balanced") == 0.123
    same = hazard_model(str(tmp_path))
    renew_hazard_models()
    assert hazard_model(str(tmp_path)) is same


def test_a_model_that_is_compared_with_is_known_by_its_files(tmp_path: Path) -> None:
    from kvx.analyze.frames import Experiment
    from kvx.config.train import TrainConfig
    from kvx.train.build import inputs_hash

    for name in (hazard_files.MODEL, hazard_files.CARD):
        shutil.copy(hazard_files.DEFAULT / name, tmp_path)
    experiment = Experiment(tmp_path, [], {})
    before = inputs_hash(experiment, TrainConfig(compare=str(tmp_path)))
    assert inputs_hash(experiment, TrainConfig(compare=str(tmp_path))) == before
    altered_hazard_model(tmp_path)
    assert inputs_hash(experiment, TrainConfig(compare=str(tmp_path))) != before


def test_an_engine_loads_the_files_that_its_run_began_with(tiny: Path) -> None:
    from kvx.engines.kvpress.model import load

    model = ModelConfig("m", str(tiny), device="cpu")
    before = model_hash(model)
    (tiny / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"^model=m: its files changed since this run began"):
        load(model, before)
    one = load(model)
    assert load(model, model_hash(model)) is one
    (tiny / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert load(model).stop_ids == {5}
