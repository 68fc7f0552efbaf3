"""Files that are not what their name says: one line, exit 2, before a model is loaded."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Kvx

from kvx.cli.command import compose
from kvx.data.sources.gsm8k import Gsm8kSource
from kvx.data.sources.instructions import InstructionsSource
from kvx.data.sources.local import LocalSource
from kvx.data.sources.longbench import LongBenchSource
from kvx.data.sources.narrativeqa import NarrativeQASource
from kvx.data.sources.niah import NiahSource
from kvx.data.sources.recall import RecallSource
from kvx.errors import UserError

ROWS = [
    {"id": f"q{i}", "context": "the quick fox " * (i + 2), "question": "who?", "answers": ["fox"]}
    for i in range(3)
]
LINES = "\n".join(map(json.dumps, ROWS))
CSV = "id,context,question,answers\n" + "".join(
    f"{r['id']},{r['context']},{r['question']},fox\n" for r in ROWS
)


def ids(path: Path) -> list[str]:
    return [e.example_id for e in LocalSource(str(path)).examples()]


GOOD: dict[str, Callable[[Path], object]] = {
    "bom.jsonl": lambda p: p.write_text("\ufeff" + LINES, encoding="utf-8"),
    "lines.json": lambda p: p.write_text(LINES),
    "array.json": lambda p: p.write_text(json.dumps(ROWS)),
    "indented.json": lambda p: p.write_text(json.dumps(ROWS, indent=2)),
    "indented.jsonl": lambda p: p.write_text(json.dumps(ROWS, indent=2)),
    "data.json": lambda p: p.write_text(json.dumps({"data": ROWS})),
    "packed.jsonl.gz": lambda p: p.write_bytes(gzip.compress(LINES.encode())),
    "packed.json.gz": lambda p: p.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "rows.csv": lambda p: p.write_text(CSV),
    "BOM.CSV": lambda p: p.write_text("\ufeff" + CSV, encoding="utf-8"),
    "packed.csv.gz": lambda p: p.write_bytes(gzip.compress(CSV.encode())),
    "tabs.tsv": lambda p: p.write_text(CSV.replace(",", "\t")),
    "windows.csv": lambda p: p.write_bytes(CSV.replace("\n", "\r\n").encode()),
    "дата.jsonl": lambda p: p.write_text(LINES),
    "rows.parquet": lambda p: pq.write_table(pa.Table.from_pylist(ROWS), p),
}


@pytest.mark.parametrize("name", GOOD)
def test_files_that_are_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "epoch=3" / name
    path.parent.mkdir()
    GOOD[name](path)
    assert ids(path) == ["q0", "q1", "q2"]


BAD: dict[str, tuple[str | bytes, str]] = {
    "utf16.jsonl": (LINES.encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "latin.jsonl": ('{"id": "é"}'.encode("latin-1"), "byte 8 is not UTF-8"),
    "empty.jsonl": ("", "holds no rows"),
    "empty.json": ("", "holds no rows"),
    "empty.csv": ("", "holds no rows"),
    "blank.jsonl": ("\n \n", "holds no rows"),
    "only_header.csv": ("id,context,question,answers\n", "holds no rows"),
    "none.json": ("[]", "holds no rows"),
    "empty.parquet": ("", "cannot be read"),
    "text.parquet": ("hello", "cannot be read"),
    "list.jsonl": ("[1, 2]\n[3]\n", "list.jsonl:1: expected a JSON object, got list"),
    "number.jsonl": ("42\n", "expected rows, got int"),
    "strings.json": ('["a", "b"]', "row 1: expected a JSON object, got str"),
    "broken.jsonl": (LINES + "\n{broken\n", "broken.jsonl:4: not valid JSON"),
    "broken.json": ("[{]", "not valid JSON"),
    "comma.json": ('[\n{"a": 1},\n]', "comma.json: not valid JSON ("),
    "columns.json": (
        json.dumps({"context": {"0": "c"}, "question": {"0": "q"}}), "orient='records'"
    ),
    "notpacked.jsonl.gz": (LINES, "cannot be read"),
    "packed.jsonl": (gzip.compress(LINES.encode()), "let its name end in .gz"),
    "cut.jsonl.gz": (gzip.compress(LINES.encode())[:-12], "cannot be read"),
    "headless.csv": (CSV.partition("\n")[2], "no field 'context' for context; it has q0, "),
    "twice.csv": ("id,context,context,answers\na,b,c,d\n", "column context occurs twice"),
    "tabs.csv": (CSV.replace(",", "\t"), "separated by tabs; name it .tsv"),
    "semicolons.csv": (CSV.replace(",", ";"), "separated by semicolons; write commas"),
    "commas.tsv": (CSV, "separated by commas"),
    "wide.csv": ("id,context,question,answers\na,b,c,d,e\n", "row 1 has more cells than the head"),
    "quote.csv": ('id,context,question,answers\na,"b,c,d\n', "cannot be read"),
    "nul.csv": ("id,context,question,answers\na,b\x00,c,d\n", "nul.csv:2: a NUL character"),
    "nul.jsonl": ('{"id": "\x00"}', "not valid JSON"),
    "surrogate.jsonl": (json.dumps({**ROWS[0], "context": "bad \ud800 x"}), "row 1: 'context': a"),
    "rows.xlsx": ("x", "unknown file type; use .jsonl"),
    "noname": ("x", "unknown file type"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_files_that_are_refused_in_one_line(name: str, kvx: Kvx, tmp_path: Path) -> None:
    content, said = BAD[name]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    outcome = kvx("prepare", "dataset=local", f"dataset.source.path={path}")
    assert outcome.code == 2, outcome.err
    assert said in outcome.err
    assert name in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not Path("outputs").exists()


def test_a_parquet_file_with_a_column_twice(tmp_path: Path) -> None:
    table = pa.table([["a"], ["b"]], names=["context", "context"])
    pq.write_table(table, tmp_path / "d.parquet")
    with pytest.raises(UserError, match="column context occurs twice"):
        ids(tmp_path / "d.parquet")


def test_paths_that_are_no_files(kvx: Kvx, tmp_path: Path) -> None:
    for path, said in ((tmp_path, "is a directory"), (tmp_path / "x.jsonl", "no such file")):
        outcome = kvx("prepare", "dataset=local", f"dataset.source.path={path}")
        assert outcome.code == 2, outcome.err
        assert said in outcome.err
        assert len(outcome.err.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(kvx: Kvx, tmp_path: Path) -> None:
    path = tmp_path / "secret.jsonl"
    path.write_text(LINES)
    path.chmod(0)
    outcome = kvx("prepare", "dataset=local", f"dataset.source.path={path}")
    assert outcome.code == 2
    assert outcome.err.strip().endswith(f"{path}: cannot be read (permission denied)")


@pytest.mark.parametrize(
    "source",
    [
        lambda p: LocalSource(str(p / "d.jsonl")),
        lambda p: LongBenchSource("d", str(p)),
        lambda p: Gsm8kSource(str(p / "d.jsonl")),
        lambda p: NarrativeQASource(str(p / "d.jsonl")),
        lambda p: NiahSource(str(p), n_examples=2, min_words=1, max_words=2),
        lambda p: InstructionsSource(str(p), str(p / "d.jsonl"), min_words=1, max_words=2),
    ],
)
def test_a_source_that_cannot_read_says_so(
    source: Callable[[Path], LocalSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "d.jsonl").write_text(LINES)
    (tmp_path / "a.txt").write_text("The quick fox. It runs.")

    opened = Path.open

    def denied(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.is_relative_to(tmp_path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", denied)
    for ask in (lambda: source(tmp_path).revision(), lambda: list(source(tmp_path).examples())):
        with pytest.raises(UserError, match=r"(d.jsonl|a.txt): cannot be read \(permission denied"):
            ask()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dataset.sampling.n_per_bin=0"], "dataset.sampling.n_per_bin=0: must be at least 1"),
        (["dataset.sampling.n_per_bin=-3"], "dataset.sampling.n_per_bin=-3: must be at least 1"),
        (["dataset.sampling.focus_n_per_bin=-1"], "focus_n_per_bin=-1: must be 0 or more"),
        (["dataset.sampling.strategy=focus_transition"], "focus_n_per_bin=0: must be at least 1"),
        (["dataset.sampling.strategy=focus_transition", "dataset.sampling.focus_n_per_bin=3",
          "dataset.sampling.focus_bins=[5]"], "focus_bins=[5]: name bins between 0 and 4"),
        (["dataset.sampling.strategy=focus_transition", "dataset.sampling.focus_n_per_bin=3"],
         "focus_bins=[]: name bins"),
        (["dataset.sampling.strategy=pinned"], "pinned_ids: empty"),
        (["dataset.binning.n_bins=0"], "dataset.binning.n_bins=0: must be at least 1"),
        (["dataset.binning.n_bins=-1"], "dataset.binning.n_bins=-1: must be at least 1"),
        (["dataset.binning.strategy=edges"], "dataset.binning.edges=[]: give at least two"),
        (["dataset.binning.edges=[-5,10]"], "edges=-5: must be 0 or more"),
        (["dataset.binning.strategy=edges", "dataset.binning.edges=[9,9]"], "edges=[9, 9]"),
        (["dataset.source.n_examples=0"], "dataset.source.n_examples=0: must be a whole number"),
        (["dataset.source.n_examples=abc"], "dataset.source.n_examples='abc': must be a whole"),
        (["dataset.source.min_words=0"], "dataset.source.min_words=0: must be"),
        (["dataset.source.max_words=100"], "min_words=200: must be at most max_words=100"),
        (["dataset.source.n_facts=1000"], "n_facts=1000: a context of min_words=200 words"),
        (["dataset.source.max_values=0"], "max_values=0: must be"),
    ],
)  # fmt: skip
def test_selections_that_cannot_be(arguments: list[str], said: str, kvx: Kvx) -> None:
    outcome = kvx("prepare", *arguments)
    assert outcome.code == 2, outcome.err
    assert said in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_pinned_ids_need_no_number_per_bin() -> None:
    compose(
        "dataset.sampling.strategy=pinned", "dataset.sampling.pinned_ids=[recall-00000]",
        "dataset.sampling.n_per_bin=0",
    )  # fmt: skip


def test_sources_check_their_own_numbers() -> None:
    for make, said in (
        (lambda: Gsm8kSource("x", min_shots=3, max_shots=2), "min_shots=3: must be at most"),
        (lambda: Gsm8kSource("x", max_shots=101), "max_shots=101: must be at most"),
        (lambda: NarrativeQASource("x", max_distractors=-1), "max_distractors=-1"),
        (lambda: NiahSource("x", min_words=9, max_words=3), "min_words=9: must be at most"),
        (lambda: InstructionsSource("x", "y", n_examples=-1), "n_examples=-1"),
        (lambda: RecallSource(n_examples=1.5), "n_examples=1.5"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError, match=said):
            make()
