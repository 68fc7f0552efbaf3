"""Wrong requests: one line that names the field or file, exit code 2, nothing half-written."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvx.errors import RunFailedError
from tests.conftest import Kvx

GOOD = {"context": "a cup of tea", "question": "what", "answers": ["tea"]}


def jsonl(path: Path, *rows: object) -> str:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
    path.write_text("\n".join(lines) + "\n")
    return f"dataset.source.path={path}"


def refused(kvx: Kvx, stage: str, *arguments: str) -> str:
    """Run, check that it was refused in one line and that nothing was left, return that line."""
    outcome = kvx(stage, *arguments)
    lines = [line for line in outcome.err.splitlines() if line]
    assert outcome.code == 2, outcome.err
    assert len(lines) == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert not list(Path("outputs").rglob("*.parquet"))
    assert not list(Path("outputs").rglob("*.json"))
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["press=snapvk"], "press=snapvk: unknown press; choose one of"),
        (["model=gpt"], "model=gpt: unknown model; choose one of"),
        (["dataset=trivia"], "dataset=trivia: unknown dataset"),
        (["budget=0", "press=snapkv"], "budget=0: must be above 0"),
        (["budget=1.7", "press=snapkv"], "budget=1.7: must be above 0 and at most 1"),
        (["budget=abc"], "budget=abc: 'abc' is not a budget"),
        (["-m", "budget=0.5,tokens"], "mixes numbers and option names"),
        (["-m", "press=snapkv", "budget=0.5,1.7"], "budget=1.7"),
        (["budget=tokens", "budget.tokens=0", "press=snapkv"], "budget.tokens=0"),
        (["budget.ratio=abc"], "budget.ratio"),
        (["press=none", "budget=0.5"], "press=none: keeps the full cache"),
        (["press=snapkv,knorm"], "press=snapkv,knorm: several values; add -m to sweep"),
        (["press.window=3"], "press.window: no such field"),
        (["dataset.sampling.n_per_bin=many"], "dataset.sampling.n_per_bin"),
        (["dataset.metrics=[bleu]"], "dataset.metrics"),
        (["dataset.answer_format=prose"], "dataset.answer_format"),
        (["decoding.temperature=-1"], "decoding.temperature=-1"),
        (["model.dtype=float12"], "model.dtype=float12"),
        (["model=hf", "model.path=/no/such/model"], "no model in /no/such/model; set model.path"),
        (["model=hf"], "model.path: needs a value"),
        (["dataset=local"], "dataset.source.path: needs a value"),
        (["dataset=local", "dataset.source.path=gone.jsonl"], "gone.jsonl: no such file"),
        (["press.method.window_size=16"], "press.method: choose a press first"),
        (["decoding.top_p=3"], "decoding.top_p=3"),
        (["decoding.timeout_s=0"], "decoding.timeout_s=0"),
        (["dataset.template.context=none"], "dataset.template.context: must hold {context}"),
        (["press=observed_attention", "model.attn_implementation=sdpa", "budget=0.5"], "eager"),
    ],
)
def test_wrong_configuration(kvx: Kvx, arguments: list[str], says: str) -> None:
    assert says in refused(kvx, "prepare" if "dataset=local" in arguments else "run", *arguments)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["+press.method.windw_size=3"], "press=snapkv: kvpress.SnapKVPress: "),
        (["press.method._target_=kvpress.NoPress"], "kvpress.NoPress: no such class"),
        (["press.method._target_=nobody.Press"], "nobody.Press: cannot import nobody"),
        (["model.device=xpux"], "model.device=xpux: "),
        (["model.attn_implementation=flush"], "model.attn_implementation=flush: "),
        (
            ["press.method.window_size=5000"],
            "needs prompts of more than 5000 tokens, but example recall-",
        ),
    ],
)
def test_a_press_that_cannot_run_is_refused_before_any_request(
    kvx: Kvx, arguments: list[str], says: str
) -> None:
    outcome = kvx("run", "press=snapkv", "budget=0.5", *arguments)
    assert outcome.code == 2
    assert says in outcome.err.splitlines()[-1]
    assert not Path("outputs/runs").exists()


BROKEN = """
from dataclasses import dataclass
from kvpress import ScorerPress

@dataclass
class Raises(ScorerPress):
    def score(self, *arguments, **named):
        raise RuntimeError("a mistake of mine")
"""


@pytest.mark.parametrize("full", [True, False])
def test_where_a_users_press_raised_is_shown_on_request(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    module = tmp_path / f"my_press_{full}.py"
    module.write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    few = ("dataset.source.n_examples=5", "dataset.binning.n_bins=1", "run.progress=false")
    arguments = ("press=knorm", "budget=0.5", f"press.method._target_={module.stem}.Raises", *few)
    if not full:
        outcome = kvx("run", *arguments)
        assert "Traceback" not in outcome.err
        assert "RuntimeError: a mistake of mine" in outcome.err.splitlines()[-1]
        return
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RunFailedError):
        kvx("run", *arguments)
    shown = capfd.readouterr().err
    assert f'{module}", line 8, in score' in shown
    assert shown.count("RuntimeError: a mistake of mine\n") == 1  # of five requests


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([GOOD, "{not json"], "data.jsonl:2: not valid JSON"),
        ([GOOD, "[1]"], "data.jsonl:2: expected a JSON object"),
        ([GOOD, {**GOOD, "answers": []}], "row 2: no answers in 'answers'"),
        ([{"context": "a", "answers": ["b"]}], "row 1: no field 'question' for question"),
        ([{**GOOD, "id": "a"}, {**GOOD, "id": "a"}], "row 2: id 'a' occurs twice"),
        ([{**GOOD, "context": None}], "row 1: empty 'context'"),
        ([], "data.jsonl: holds no rows"),
        ([GOOD, GOOD, GOOD], "dataset.binning.n_bins=5: only 1 distinct context lengths"),
    ],
)
def test_wrong_data(kvx: Kvx, tmp_path: Path, rows: list[object], says: str) -> None:
    data = jsonl(tmp_path / "data.jsonl", *rows)
    assert says in refused(kvx, "prepare", "dataset=local", data)


def test_a_broken_parquet_and_an_unknown_file_type_are_named(kvx: Kvx, tmp_path: Path) -> None:
    for name in ("data.parquet", "data.txt"):
        (tmp_path / name).write_bytes(b"not a table")
        path = f"dataset.source.path={tmp_path / name}"
        outcome = kvx("prepare", "dataset=local", path)
        assert outcome.code == 2
        assert name in outcome.err.splitlines()[-1]


def test_a_context_longer_than_the_model_is_refused_or_truncated(kvx: Kvx, tmp_path: Path) -> None:
    words = json.loads(Path(pytest_words()).read_text())["filler"]
    long = {**GOOD, "context": " ".join(words[i % 90] for i in range(9000)), "id": "long"}
    data = jsonl(tmp_path / "data.jsonl", long)
    arguments = ["dataset=local", data, "dataset.binning.n_bins=1"]
    outcome = kvx("prepare", *arguments)
    assert outcome.code == 2
    assert "example long: prompt and 64 new tokens exceed the context" in outcome.err
    for overflow in ("truncate_middle", "truncate_head"):
        assert kvx("prepare", *arguments, f"dataset.overflow={overflow}").code == 0
    cut = {
        pq.read_table(p).to_pylist()[0]["context"]
        for p in Path("outputs/data/processed/local__file").glob("*/examples.parquet")
    }
    starts = {text.startswith(long["context"][:100]) for text in cut}
    assert starts == {True, False}  # the middle cut keeps the beginning, the head cut does not
    assert all(text.endswith(long["context"][-100:]) for text in cut)
    assert all(len(text.split()) < 8192 for text in cut)


def pytest_words() -> str:
    import kvx.data.sources.recall as recall

    return str(recall.words_file())


@pytest.mark.parametrize("stage", ["score", "analyze", "report"])
def test_a_stage_before_run_says_what_to_run_first(kvx: Kvx, stage: str) -> None:
    assert "no finished point; run kvx.run with" in refused(kvx, stage)


def test_an_output_directory_that_cannot_be_written(kvx: Kvx, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file, not a directory")
    outcome = kvx("run", "paths.output=occupied")
    assert outcome.code == 2
    assert "cannot write occupied" in outcome.err.splitlines()[-1]
    assert "set paths.output (results)" in outcome.err.splitlines()[-1]


@pytest.mark.parametrize("field", ["output", "multirun"])
def test_a_folder_that_the_system_will_not_make(kvx: Kvx, field: str) -> None:
    """Where homes are mounted on demand, mkdir says ENOENT; so does /proc."""
    outcome = kvx("run", "-m", "press=knorm", "budget=1.0,0.5", f"paths.{field}=/proc/nobody/kvx")
    assert outcome.code == 2
    assert "cannot make /proc/nobody: " in outcome.err.splitlines()[-1]
    assert "Traceback" not in outcome.err


def test_pinned_ids_that_are_not_there(kvx: Kvx) -> None:
    outcome = kvx("prepare", "experiment=sanity", "dataset.sampling.pinned_ids=[recall-77777]")
    assert outcome.code == 2
    assert "dataset.sampling.pinned_ids: recall-77777 not in the data" in outcome.err


def test_a_schema_mistake_in_a_table_is_not_written(tmp_path: Path) -> None:
    from kvx.store import schemas
    from kvx.store.shards import write_table

    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        write_table(tmp_path / "t.parquet", [{"request_id": 3}], schemas.FAILURES)
    assert list(tmp_path.iterdir()) == []
