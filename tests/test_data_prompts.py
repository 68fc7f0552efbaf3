"""What a row says of its own prompt is used; what was cut from it is told; templates as typed."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import Kvx, request_rows
from fault_server import KEY, FaultServer, serving

from kvx.analyze import bin_stats
from kvx.cli.command import compose
from kvx.config.escapes import unescaped
from kvx.data import manifest as manifests
from kvx.data.frozen_examples import load_examples
from kvx.data.manifest import Entry
from kvx.data.prompt import PromptBuilder
from kvx.data.tokenizer import load_tokenizer
from kvx.points import Point, Request
from kvx.prepare.build import ensure_manifest
from kvx.store import schemas

RUN = Path("outputs/runs/own")
ONE_BIN = ("dataset.binning.n_bins=1", "experiment_name=own")


def data(path: Path, *settings: dict[str, Any], words: int = 30) -> list[str]:
    rows = [
        {"id": f"q{i}", "context": "the quick fox " * (words + i), "question": "who?",
         "answers": ["fox"], **own}
        for i, own in enumerate(settings)
    ]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)))
    return ["dataset=local", f"dataset.source.path={path}", *ONE_BIN]


OWN = (
    {"answer_prefix": " First:", "max_new_tokens": 1},
    {"answer_prefix": "", "max_new_tokens": 3},
    {"answer_prefix": None, "max_new_tokens": None},
)


@pytest.mark.parametrize("how", [(), ("engine.share=false",), ("press=random", "budget=0.5")])
def test_a_row_has_its_own_limit_while_decoding(
    how: tuple[str, ...], kvx: Kvx, tmp_path: Path
) -> None:
    arguments = [*data(tmp_path / "d.jsonl", *OWN), "decoding.max_new_tokens=5", *how]
    outcome = kvx("run", *arguments, "decoding.temperature=2")
    assert outcome.code == 0, outcome.err
    assert "2 of 3 rows set their own max_new_tokens" in outcome.err
    rows = request_rows(RUN).set_index("example_id")
    assert rows["max_new_tokens"].to_dict() == {"q0": 1, "q1": 3, "q2": 5}
    assert (rows["output_tokens"] <= rows["max_new_tokens"]).all()
    capped = rows[rows["output_tokens"] == rows["max_new_tokens"]]
    assert "q0" in capped.index


def test_a_server_is_asked_with_the_row_s_prefix_and_limit(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(FaultServer()) as server:
        arguments = [
            *data(tmp_path / "d.jsonl", *OWN), "dataset.template.answer_prefix=Usual:",
            "engine=openai", "engine.probe=false", f"engine.base_url={server.url}",
        ]  # fmt: skip
        assert kvx("run", *arguments).code == 0
        asked = sorted((body["max_tokens"], body["prompt"][-12:]) for body in server.bodies)
    assert [limit for limit, _ in asked] == [1, 3, 64]
    assert asked[0][1].endswith("who?\n First:")
    assert asked[1][1].endswith("who?\n")
    assert asked[2][1].endswith("\nUsual:")


def test_formatted_rows_are_put_in_no_template(kvx: Kvx, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"index": 0, "input": "Long text. What is x?", "outputs": ["1"]}))
    config = compose("dataset=local", f"dataset.source.path={path}", *ONE_BIN)
    _, folder = ensure_manifest(config)
    (example,) = load_examples(folder).values()
    assert example.formatted
    builder = PromptBuilder(load_tokenizer(config.model), config)
    before, after = builder.texts(example)
    assert "Long text. What is x?" in (before + after).replace("\n", "")
    assert "Question:" not in before + after
    assert builder.message(example) == "Long text. What is x?"


def test_manifests_without_settings_are_what_they_were(kvx: Kvx, tmp_path: Path) -> None:
    plain = data(tmp_path / "d.jsonl", {}, {"cluster": "a"})
    manifest, folder = ensure_manifest(compose(*plain))
    text = (folder / "manifest.json").read_text()
    assert "max_new_tokens" not in text
    assert "context_tokens_cut" not in text
    assert pq.read_schema(folder / "examples.parquet").names == schemas.EXAMPLES.names
    assert manifests.load(folder, compose(*plain)) == manifest
    typed = compose(*plain, "dataset.source.layout=auto")
    assert ensure_manifest(typed)[1] == folder
    other = compose(*plain, "dataset.source.layout=plain")
    assert ensure_manifest(other)[1] != folder
    own = data(tmp_path / "own.jsonl", *OWN)
    manifest, folder = ensure_manifest(compose(*own))
    assert [e.max_new_tokens for e in manifest.entries] == [1, 3, None]
    assert manifests.load(folder, compose(*own)) == manifest
    ignored = compose(*own, "dataset.source.fields.max_new_tokens=null")
    assert [e.max_new_tokens for e in ensure_manifest(ignored)[0].entries] == [None] * 3


def test_a_key_from_before_there_were_layouts(tmp_path: Path) -> None:
    rows = [
        {"id": f"q{i}", "context": "the quick fox " * (i + 2), "question": "who?",
         "answers": ["fox"], "cluster": i % 2 + 1}
        for i in range(3)
    ]  # fmt: skip
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = compose(
        "dataset=local", f"dataset.source.path={tmp_path}/d.jsonl", "dataset.binning.n_bins=1"
    )
    revision = manifests.make_source(config.dataset).revision()
    assert manifests.manifest_key(config, revision) == "217d3120"  # what version 0.1 made of it


def test_requests_know_their_own_limit(tmp_path: Path) -> None:
    config = compose(*data(tmp_path / "d.jsonl", {}), "decoding.max_new_tokens=7")
    manifest = manifests.Manifest("d", "k", "t", "h", "h", "r", "s", (), (), {})
    point = Point(config, manifest, tmp_path)
    usual = Request(point, Entry("a", 0, 1, 1, 1, "c", "s"))
    own = Request(point, Entry("a", 0, 1, 1, 1, "c", "s", max_new_tokens=3))
    assert (usual.max_new_tokens, usual.decoding) == (7, None)
    assert own.max_new_tokens == 3
    assert own.decoding is not None
    assert own.decoding.max_new_tokens == 3


def test_contexts_that_were_cut_are_told_everywhere(kvx: Kvx, tmp_path: Path) -> None:
    arguments = [
        *data(tmp_path / "d.jsonl", {}, {}, words=200), "model.max_context_tokens=100",
        "decoding.max_new_tokens=5", "dataset.overflow=truncate_head",
    ]  # fmt: skip
    short = {"id": "s", "context": "the fox", "question": "who?", "answers": ["fox"]}
    with (tmp_path / "d.jsonl").open("a") as handle:
        handle.write("\n" + json.dumps(short))
    for _ in range(2):  # prepared, and found
        outcome = kvx("run", *arguments, "budget=1.0")
        assert outcome.code == 0, outcome.err
        assert "2 of 3 contexts do not fit model=tiny_recall and were cut" in outcome.err
        assert "dataset.overflow=truncate_head" in outcome.err
    rows = request_rows(RUN).set_index("example_id")
    whole = {"q0": 600, "q1": 603, "s": 2}
    for name, row in rows.iterrows():
        assert row["context_tokens"] + row["context_tokens_cut"] == whole[str(name)]
    assert rows.loc["s", "context_tokens_cut"] == 0
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage, *arguments)
        assert outcome.code == 0, outcome.err
    report = (RUN / "details.md").read_text()
    warned = report.partition("## Before you believe it")[2]
    assert "**Contexts that were cut.**" in warned
    assert "2 of 3 contexts did not fit the model" in report
    lost = rows.loc[["q0", "q1"], "context_tokens_cut"].mean()
    assert f"lost {lost:,.0f} tokens on average" in report


def test_runs_from_before_do_not_say_that_nothing_was_cut() -> None:
    nothing = {"context_tokens_cut": pd.Series([float("nan")] * 2).to_numpy()}
    assert bin_stats.cut_columns(nothing)["n_contexts_cut"] is None
    some = {"context_tokens_cut": pd.Series([0.0, 40.0, 60.0]).to_numpy()}
    assert bin_stats.cut_columns(some) == {"n_contexts_cut": 2, "context_tokens_cut_mean": 50.0}


@pytest.mark.parametrize("stored", [True, False])
def test_a_reference_without_a_number_is_refused(kvx: Kvx, tmp_path: Path, stored: bool) -> None:
    arguments = data(tmp_path / "d.jsonl", {"answers": ["42"]}, {"answers": ["none"]})
    if stored:
        assert kvx("prepare", *arguments).code == 0
    outcome = kvx("prepare", *arguments, "dataset.metrics=[exact_match,numeric]")
    assert outcome.code == 2
    assert "example q1: no number in its reference 'none'" in outcome.err
    arguments = data(tmp_path / "d.jsonl", {"answers": ["42"]}, {"answers": ["none", "7"]})
    assert kvx("prepare", *arguments, "dataset.metrics=[numeric]").code == 0


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (r"Q: {question}\nAnswer:", "Q: {question}\nAnswer:"),
        (r"\t{question}", "\t{question}"),
        (r"{question}\\n", r"{question}\n"),
        (r"{question} \boxed{}", r"{question} \boxed{}"),
        (r"{question}\\\n", "{question}\\\n"),
        ("{question}\n", "{question}\n"),
        ("{question}\\", "{question}\\"),
    ],
)
def test_templates_as_they_are_typed(typed: str, meant: str) -> None:
    assert unescaped(typed) == meant
    config = compose("dataset=recall", f"dataset.template.question='{typed} '")
    assert config.dataset.template.question == f"{meant} "


def test_a_line_break_from_the_command_line_reaches_the_prompt(kvx: Kvx, tmp_path: Path) -> None:
    arguments = data(tmp_path / "d.jsonl", {})
    question = r"dataset.template.question='Q: {question}\nA:'"
    prefix = r"dataset.template.answer_prefix='\n\tIt is'"
    config = compose(*arguments, question, prefix)
    _, folder = ensure_manifest(config)
    (example,) = load_examples(folder).values()
    text = "".join(PromptBuilder(load_tokenizer(config.model), config).texts(example))
    assert "Q: who?\nA:" in text
    assert text.endswith("\n\tIt is")
    plain = compose(*arguments, question.replace(r"\n", "\n"), prefix.replace(r"\n\t", "\n\t"))
    assert ensure_manifest(plain)[1] == folder


def test_no_shipped_template_holds_a_backslash() -> None:
    for name in ("gsm8k", "gsm8k_fewshot", "instructions", "longbench_narrativeqa", "niah"):
        template = compose(f"dataset={name}").dataset.template
        assert "\\" not in template.context + template.question + template.answer_prefix


def test_an_id_that_a_source_yields_twice_is_refused(kvx: Kvx, tmp_path: Path) -> None:
    rows = [
        {"input": "q?", "context": f"the fox {i}", "answers": ["a"], "_id": "x"} for i in range(2)
    ]
    (tmp_path / "narrativeqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outcome = kvx("prepare", "dataset=longbench_narrativeqa", f"dataset.source.path={tmp_path}")
    assert outcome.code == 2
    assert "row 2: id 'narrativeqa-x' occurs twice (first in row 1)" in outcome.err
