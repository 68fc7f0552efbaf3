"""Data as people have it: every layout gives the texts that are meant, or one line says why not."""

import csv
import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Kvx, request_rows
from fault_server import KEY, FaultServer, serving

from kvx.data.example import Example
from kvx.data.layouts import split_question
from kvx.data.sources.local import LocalSource
from kvx.data.sources.longbench import LongBenchSource
from kvx.data.sources.narrativeqa import NarrativeQASource
from kvx.data.values import literal
from kvx.errors import UserError
from kvx.identity.hashing import sha256_file
from kvx.store import layout
from kvx.store.catalog import read_frame
from kvx.store.traces import read_traces

TEXT = "away from the quick fox "


def row(number: int = 0, **fields: Any) -> dict[str, Any]:
    plain = {"id": f"q{number}", "context": TEXT * (number + 1), "question": f"Where is {number}?"}
    return {**plain, "answers": ["Paris"], **fields}


def jsonl(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("\n".join(json.dumps(r) for r in rows))
    return str(path)


def read(path: Path, *rows: dict[str, Any], **options: Any) -> list[Example]:
    return list(LocalSource(jsonl(path, *rows), **options).examples())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


ANSWERS = {
    "SQuAD": ({"text": ["Paris", "in Paris"], "answer_start": [0, 3]}, ("Paris", "in Paris")),
    "SQuAD list": ([{"text": "Paris", "answer_start": 0}, {"text": "France"}], ("Paris", "France")),
    "one text in an object": ({"text": "Paris"}, ("Paris",)),
    "nested": ([["Paris", "paris"], ["France", [None]]], ("Paris", "paris", "France")),
    "JSON in text": ('["Paris", "in Paris"]', ("Paris", "in Paris")),
    "Python in text": ("['Paris', \"l'Est\"]", ("Paris", "l'Est")),
    "nested Python in text": ("[['Paris'], ['in Paris', None]]", ("Paris", "in Paris")),
    "numpy in text": ("['Paris' 'in Paris'\n 'France']", ("Paris", "in Paris", "France")),
    "pandas cell of SQuAD": (
        "{'text': array(['Paris', 'in Paris'], dtype=object), 'answer_start': array([1, 2])}",
        ("Paris", "in Paris"),
    ),
    "numpy scalars in text": ("[np.int64(42), np.float64(0.5)]", ("42", "0.5")),
    "numpy strings in text": ("[np.str_('Paris')]", ("Paris",)),
    "decimals in text": ("[Decimal('1.50')]", ("1.50",)),
    "negative numbers as numpy prints them": ("[-1 -2]", ("-1", "-2")),
    "a tuple in text": ("('Paris', 'France')", ("Paris", "France")),
    "a set in text": ("{'Paris', 'France'}", ("France", "Paris")),
    "a place": ("(1, 2)", ("(1, 2)",)),
    "a set of numbers": ("{1, 2}", ("{1, 2}",)),
    "a difference": ("[1 - 2]", ("[1 - 2]",)),
    "string": ("Paris", ("Paris",)),
    "a text in brackets": ("[citation needed]", ("[citation needed]",)),
    "a JSON object that is the answer": ('{"a": 1}', ('{"a": 1}',)),
    "an inner text is no list": (["[1, 2]"], ("[1, 2]",)),
    "int": (42, ("42",)),
    "whole float": (42.0, ("42",)),
    "float": (0.5, ("0.5",)),
    "small float": (0.00001, ("0.00001",)),
    "large": (1e16, ("10000000000000000",)),
    "zero": (0, ("0",)),
    "list of numbers": ([0, 1.0, None, float("nan")], ("0", "1")),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_references_are_the_texts_that_are_meant(name: str, file: Path) -> None:
    value, expected = ANSWERS[name]
    assert read(file, row(answers=value))[0].answers == expected


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("answers", True, "'answers': bool True where text is needed"),
        ("answers", {"value": "Paris", "aliases": []}, "'answers': an object with value, aliases"),
        ("answers", [{"span": [0, 3]}], "'answers': an object with span"),
        ("answers", [], "no answers in 'answers'"),
        ("answers", None, "no answers in 'answers'"),
        ("question", ["a", "b"], "'question': a list of 2 where text is needed"),
        ("question", {"text": "why?"}, "'question': an object with text"),
        ("context", {"pages": ["a"]}, "'context': an object with pages"),
        ("context", [["a", 1]], "'context': a list of 1"),
        ("context", [{"id": 3}], "'context': passage 1 has no text, only id"),
        ("context", True, "'context': bool True"),
        ("id", ["q1"], "'id': a list of 1"),
        ("cluster", {"a": 1}, "'cluster': an object with a"),
        ("context", "bad \ud800 text", "'context': a lone surrogate (\\ud800) at character 4"),
        ("answers", ["\udfff"], "'answers': a lone surrogate"),
        ("id", "\ud800", "'id': a lone surrogate"),
        ("question", "a\x00b", "'question': a NUL character"),
        ("max_new_tokens", 0, "max_new_tokens=0: must be a whole number of at least 1"),
        ("max_new_tokens", "many", "max_new_tokens=many: must be"),
        ("max_new_tokens", 2.5, "max_new_tokens=2.5: must be"),
        ("max_new_tokens", "nan", "max_new_tokens=nan: must be"),
        ("max_new_tokens", "Infinity", "max_new_tokens=Infinity: must be"),
        ("answer_prefix", ["a"], "'answer_prefix': a list of 1"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_by_row_column_and_type(
    column: str, value: Any, said: str, file: Path
) -> None:
    with pytest.raises(UserError) as refused:
        read(file, row(0), row(1, **{column: value}))
    message = str(refused.value)
    assert message.startswith(f"{file}: row 2: ")
    assert said in message
    assert "\n" not in message


def test_parquet_cells_keep_their_form(tmp_path: Path) -> None:
    folder = tmp_path / "epoch=3"  # no partition of the data
    folder.mkdir()
    table = pa.table(
        {
            "id": pa.array([1e16, None, 2.0], pa.float64()),
            "context": ["c one", "c two", "c three"],
            "question": ["q", "q", "q"],
            "answers": pa.array([42.0, 0.0, 7.25], pa.float64()),
            "cluster": pa.array([0, 0, 1], pa.int32()),
        }
    )
    pq.write_table(table, folder / "d.parquet")
    found = list(LocalSource(str(folder / "d.parquet")).examples())
    assert [e.example_id for e in found] == ["10000000000000000", "row-00002", "2"]
    assert [e.answers for e in found] == [("42",), ("0",), ("7.25",)]
    assert [e.cluster for e in found] == ["0", "0", "1"]
    for value, name in (
        (datetime.date(2024, 1, 2), "date"), (datetime.datetime(2024, 1, 2), "datetime"),
        (b"x", "bytes"), (float("inf"), "float"),
    ):  # fmt: skip
        pq.write_table(table.set_column(3, "answers", pa.array([value] * 3)), folder / "d.parquet")
        with pytest.raises(UserError, match=f"row 1: 'answers': {name} "):
            list(LocalSource(str(folder / "d.parquet")).examples())
    money = pa.array([decimal.Decimal("42.00")] * 3)
    pq.write_table(table.set_column(3, "answers", money), folder / "d.parquet")
    assert next(LocalSource(str(folder / "d.parquet")).examples()).answers == ("42",)


def test_zero_and_false_are_names(file: Path) -> None:
    rows = [row(i, id=i, cluster=c) for i, c in enumerate((0, 0, 1, False, "", None))]
    found = read(file, *rows)
    assert [e.example_id for e in found] == ["0", "1", "2", "3", "4", "5"]
    assert [e.cluster for e in found[:4]] == ["0", "0", "1", "False"]
    assert len({e.cluster for e in found}) == 5  # without one, texts are their own
    with pytest.raises(UserError, match="cluster must be a string, not int 0"):
        Example("a", "c", "q", ("x",), cluster=0)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="answers must be a tuple of strings, not str 'Paris'"):
        Example("a", "c", "q", "Paris")  # type: ignore[arg-type]


TITLED = [["Title A", ["s one.", " s two."]], ["Title B", ["s three."]]]
JOINED = "Passage 1:\nTitle A\ns one. s two.\n\nPassage 2:\nTitle B\ns three."


@pytest.mark.parametrize(
    "context",
    [
        TITLED,
        {"title": ["Title A", "Title B"], "sentences": [["s one.", " s two."], ["s three."]]},
        [{"title": "Title A", "sentences": ["s one.", "s two."]},
         {"title": "Title B", "sentences": ["s three."]}],
        str(TITLED),
    ],
)  # fmt: skip
def test_hotpotqa_passages_are_joined(context: Any, file: Path) -> None:
    raw = {"_id": "h1", "question": "q?", "answer": "yes", "context": context, "type": "bridge"}
    for options in ({}, {"layout": "hotpotqa"}):
        (found,) = read(file, raw, **options)
        assert found.context == JOINED
        assert found.answers == ("yes",)
    assert found.example_id == "h1"


def test_other_contexts_that_only_look_like_lists_stay_text(file: Path) -> None:
    for context in ('{"key": "value", "title": "t"}', "[1] A first note.", "[[unclosed"):
        assert read(file, row(context=context))[0].context == context
    assert read(file, row(context=["one", "two"]))[0].context == "one\n\ntwo"


CELLS = {
    "titled, as datasets writes csv": (
        "{'title': array(['Title A', 'Title B'], dtype=object), 'sentences': array([array("
        "['s one.', ' s two.'], dtype=object),\n       array(['s three.'], dtype=object)], "
        "dtype=object)}",
        JOINED,
    ),
    "passages": ("[{'title': 'A', 'text': 'b'}, {'text': 'c'}]",
                 "Document (Title: A): b\n\nDocument: c"),
    "paragraphs": ("['one', 'two']", "one\n\ntwo"),
    "numpy's paragraphs": ("['one' 'two']", "one\n\ntwo"),
    "numbers": ("[1, 2]", "[1, 2]"),
    "JSON of somebody's": ('[{"a": 1}]', '[{"a": 1}]'),
    "a note": ("[1] A first note.", "[1] A first note."),
}  # fmt: skip


@pytest.mark.parametrize("name", CELLS)
def test_contexts_in_csv_are_what_pandas_wrote(name: str, tmp_path: Path) -> None:
    cell, meant = CELLS[name]
    path = tmp_path / "d.csv"
    pd.DataFrame([row(context=cell, answers="x")]).to_csv(path, index=False)
    (found,) = LocalSource(str(path)).examples()
    assert found.context == meant
    alike = "local-2-" not in LocalSource(str(path)).revision()
    assert alike == (meant == cell)


def test_numpy_s_print_is_no_context(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    pd.DataFrame([row(context="{'parts': array(['a'], dtype=object)}", answers="x")]).to_csv(path)
    with pytest.raises(UserError, match="row 1: 'context': a printed numpy array"):
        list(LocalSource(str(path)).examples())


def test_a_context_in_jsonl_that_is_a_python_list_stays_text(file: Path) -> None:
    assert read(file, row(context="['one', 'two']"))[0].context == "['one', 'two']"


def test_squad_files(file: Path) -> None:
    questions = [
        {"id": "1", "question": "q one?", "answers": [{"text": "a", "answer_start": 0}] * 2},
        {"id": "2", "question": "q two?", "answers": [], "is_impossible": True},
        {"id": "3", "question": "q three?", "answers": [{"text": "b", "answer_start": 0}]},
    ]
    paragraphs = [{"context": "c one", "qas": questions}]
    article = {"title": "t", "paragraphs": paragraphs}
    file = file.with_suffix(".json")
    for indent in (None, 2):
        file.write_text(json.dumps({"version": "v2.0", "data": [article]}, indent=indent))
        found = list(LocalSource(str(file)).examples())
        assert [(e.example_id, e.answers) for e in found] == [("1", ("a", "a")), ("3", ("b",))]
        assert {e.context for e in found} == {"c one"}
        assert len({e.cluster for e in found}) == 1
    flat = row(answers={"text": [], "answer_start": []})
    assert [e.example_id for e in read(file, flat, row(1))] == ["q1"]


def test_ruler_rows_are_split_where_they_ask(file: Path) -> None:
    niah = (
        "Some special magic numbers are hidden within the following text. Make sure to memorize "
        "it.\nThe number for a-b is: 123. What is it?\nWhat are all the special magic numbers for "
        "a-b mentioned in the provided text?"
    )
    qa = (
        "Answer the question based on the given documents. Only give me the answer.\n\nDocument 1:"
        "\nx\n\nAnswer the question based on the given documents. Only give me the answer.\n\n"
        "Question: Who is x?"
    )
    raw = {"index": 0, "input": niah, "outputs": ["123", 456], "length": 64}
    found = read(
        file, {**raw, "answer_prefix": " The numbers are"}, {**raw, "index": 1, "input": qa}
    )
    assert [e.example_id for e in found] == ["0", "1"]
    assert [e.answers for e in found] == [("123", "456")] * 2
    assert [e.context + e.question for e in found] == [niah, qa]
    assert found[0].question.startswith("What are all the special magic numbers for a-b")
    assert found[1].question.startswith("Answer the question based on")
    assert [e.answer_prefix for e in found] == [" The numbers are", None]
    assert all(e.formatted for e in found)
    assert split_question("big big dog What is the number?") == (
        "big big dog ",
        "What is the number?",
    )
    assert split_question("no question here") == ("no question here", "")


def test_helmet_passages(file: Path) -> None:
    ctxs = [{"id": "7", "title": "T", "text": "body", "has_answer": True}, {"text": "more"}]
    (found,) = read(file, {"question": "q?", "answers": ["a"], "ctxs": ctxs})
    assert found.context == "Document (Title: T): body\n\nDocument: more"
    (found,) = read(file, {"qid": 3, "query": "q?", "answer": "a", "ctxs": ctxs}, layout="helmet")
    assert (found.example_id, found.question, found.answers) == ("3", "q?", ("a",))


def test_musique_paragraphs_are_no_squad(file: Path) -> None:
    paragraphs = [{"idx": 0, "title": "T", "paragraph_text": "body"}]
    raw = {"id": "2hop", "paragraphs": paragraphs, "question": "q?", "answer": "a"}
    with pytest.raises(UserError, match="no field 'context' for context; it has id, paragraphs"):
        read(file, raw)
    (found,) = read(file, raw, fields={"context": "paragraphs"})
    assert (found.context, found.answers) == ("Document (Title: T): body", ("a",))


def test_infinitebench_and_options(file: Path) -> None:
    raw = {"id": 0, "context": "c", "input": "Which?", "answer": ["two"], "options": []}
    (found,) = read(file, raw)
    assert (found.example_id, found.question, found.answers) == ("0", "Which?", ("two",))
    (found,) = read(file, {**raw, "options": ["one", "two"]})
    assert found.question == "Which?\nA. one\nB. two"
    assert found.answers == ("two", "B")
    second = {"_id": "x", "context": "c", "question": "Which?", "answer": "B", "choice_A": "one",
              "choice_B": "two"}  # fmt: skip
    (found,) = read(file, second)
    assert found.question == "Which?\nA. one\nB. two"
    assert found.answers == ("B", "two")


def test_longbench_in_a_file_and_in_a_directory(tmp_path: Path) -> None:
    rows = [
        {"input": "q?", "context": "c one", "answers": "Paris", "length": 2, "_id": 0},
        {"input": "", "context": "c two", "answers": [["x", "y"]], "length": 2, "_id": 1},
        {"input": "q?", "context": "c three", "answers": 42, "length": 2, "_id": 2},
    ]
    path = tmp_path / "qasper.jsonl"
    answers = [("Paris",), ("x", "y"), ("42",)]
    assert [e.answers for e in read(path, *rows)] == answers
    source = LongBenchSource("qasper", str(tmp_path))
    assert [e.answers for e in source.examples()] == answers
    assert [e.example_id for e in source.examples()] == ["qasper-0", "qasper-1", "qasper-2"]
    plain = {**rows[0], "answers": ["a"], "_id": "h"}
    for asked in ("input", "question"):
        jsonl(path, {asked if name == "input" else name: cell for name, cell in plain.items()})
        assert source.revision() == f"longbench-1-{sha256_file(path)[:12]}"
    jsonl(path, rows[0], rows[0])
    with pytest.raises(UserError, match=r"qasper: row 2: id 'qasper-0' occurs twice \(first in ro"):
        list(source.examples())
    jsonl(path, {**rows[0], "answers": {"a": 1}})
    with pytest.raises(UserError, match="row 1: 'answers': an object with a"):
        list(source.examples())


def test_longbench_in_kvpress_form_is_not_wrapped_again(tmp_path: Path) -> None:
    formatted = {"context": "You are given a story. Story: c", "question": "Question: q?\n\n",
                 "answer_prefix": "Answer:", "answers": ["a"], "max_new_tokens": 148}  # fmt: skip
    jsonl(tmp_path / "narrativeqa.jsonl", formatted)
    (found,) = LongBenchSource("narrativeqa", str(tmp_path)).examples()
    assert (found.formatted, found.answer_prefix, found.max_new_tokens) == (True, "Answer:", 148)
    source = LongBenchSource("narrativeqa", str(tmp_path), row_limits=False)
    assert next(iter(source.examples())).max_new_tokens is None


def test_longbench_from_the_hub_is_one_commit() -> None:
    revision = LongBenchSource("narrativeqa").revision()
    assert revision.endswith("@2e9ade51ebf45d98942056c0716234f9d5d257d5")
    for branch in ("main", None, "2e9ade5"):
        with pytest.raises(UserError, match="name a commit"):
            LongBenchSource("narrativeqa", hub_revision=branch).revision()


def test_layouts_are_named_and_checked(file: Path) -> None:
    with pytest.raises(UserError, match=r"layout=sqad: choose from auto, plain, squad"):
        LocalSource(str(file), layout="sqad")
    with pytest.raises(UserError, match=r"fields.context: every example needs it"):
        LocalSource(str(file), fields={"context": None})
    with pytest.raises(UserError, match="no field 'ctxs' for context; it has id, question"):
        read(file, {k: v for k, v in row().items() if k != "context"} | {"document": "x"},
             fields={"context": "ctxs"})  # fmt: skip


def test_ids_of_data_that_was_read_rightly_stay(file: Path) -> None:
    plain = [row(0), row(1, answers="Paris"), row(2, answers='["a", "b"]'), row(3, id=7, cluster=2)]
    source = LocalSource(jsonl(file, *plain))
    assert source.revision() == f"local-{sha256_file(file)[:12]}"
    for other in ({"cluster": 0}, {"id": 0}, {"answers": {"text": ["a"]}}, {"answers": "['a']"},
                  {"answers": 42.0}, {"max_new_tokens": 5}, {"answer_prefix": "A:"},
                  {"context": TITLED}):  # fmt: skip
        source = LocalSource(jsonl(file, *plain, row(4, **other)))
        assert source.revision() == f"local-2-{sha256_file(file)[:12]}", other


def test_narrativeqa_rows_are_checked(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "['a', 'b']", "passage": f"p{i}"} for i in range(6)]
    path = jsonl(tmp_path / "n.jsonl", *rows)
    assert next(NarrativeQASource(path).examples()).answers == ("a", "b")
    jsonl(tmp_path / "n.jsonl", *rows, {"question": "q", "answer": "x"})
    with pytest.raises(UserError, match="row 7: no passage; it has question, answer"):
        list(NarrativeQASource(path).examples())


def test_python_text_is_read_without_running_it() -> None:
    assert literal("[__import__('os')]") is None
    assert literal("['a' * 3]") is None
    assert literal("[" * 10_000) is None


@pytest.mark.parametrize("kind", ["squad", "nested", "pylist", "ruler", "longbench", "hotpotqa"])
def test_a_server_that_gives_the_gold_text_scores_one(
    kind: str, kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    gold = "Green Parrots"
    rows: list[dict[str, Any]] = [row(i) for i in range(4)]
    for number, item in enumerate(rows):
        match kind:
            case "squad":
                item["answers"] = {"text": [gold], "answer_start": [0]}
            case "nested":
                item["answers"] = [["nothing"], [gold]]
            case "pylist":
                item["answers"] = str([gold, "nothing"])
            case "ruler":
                asked = f"{item['context']} What is it?"
                rows[number] = {"index": number, "input": asked, "outputs": [gold], "length": 9}
            case "longbench":
                item["input"], item["answers"] = item.pop("question"), gold
            case "hotpotqa":
                item["context"] = [["T", [item["context"]]]]
                item["answer"] = item.pop("answers") and gold
    path = tmp_path / ("d.csv" if kind == "pylist" else "d.jsonl")
    if kind == "pylist":
        with path.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        jsonl(path, *rows)
    with serving(FaultServer(answer=lambda prompt: gold)) as server:
        arguments = [
            "dataset=local", f"dataset.source.path={path}", "engine=openai", "engine.probe=false",
            f"engine.base_url={server.url}", "dataset.binning.n_bins=1", "experiment_name=gold",
            "dataset.metrics=[exact_match,string_match_any]",
        ]  # fmt: skip
        for stage in ("run", "score"):
            outcome = kvx(stage, *arguments)
            assert outcome.code == 0, outcome.err
    (scores,) = Path("outputs/runs/gold").glob("points/*/scores.parquet")
    assert set(pq.read_table(scores)["score"].to_pylist()) == {1.0}
    assert len(request_rows(Path("outputs/runs/gold"))) == 4


class Strange:
    """A source of a user's own that yields rows, not examples."""

    def revision(self) -> str:
        return "1"

    def examples(self) -> list[dict[str, Any]]:
        return [row()]


def test_sources_that_are_none(kvx: Kvx) -> None:
    for target, said in (
        ("tests.test_data_shapes.Strange", "dataset.source: yields dict, not kvx.data.example"),
        (
            "kvx.config.schema.BudgetConfig",
            "dataset.source: BudgetConfig has no revision() and examples",
        ),
    ):
        outcome = kvx("prepare", "dataset=recall", f"dataset.source._target_={target}",
                      *(f"~dataset.source.{name}" for name in ("n_examples", "min_words", "seed",
                        "max_words", "n_facts", "min_values", "max_values")))  # fmt: skip
        assert outcome.code == 2, outcome.err
        assert said in outcome.err


OWN_SOURCE = """
{top}
class Source:
    def __init__(self, **fields): pass
    def revision(self): return "one"
    def examples(self):
        {body}
"""


@pytest.mark.parametrize(
    ("top", "body", "said"),
    [
        ("", "yield {}['name']", "my_raising.Source raised KeyError: 'name' (my_raising.py:7)"),
        ("import my_nowhere", "pass", "dataset.source: No module named 'my_nowhere'\n"),
    ],
)
def test_a_source_of_the_users_that_raises_is_one_line(
    top: str, body: str, said: str, kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_raising.py").write_text(OWN_SOURCE.format(top=top, body=body))
    outcome = kvx("prepare", "dataset=recall", "dataset.source._target_=my_raising.Source")
    assert outcome.code == 2, outcome.err
    assert said in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize("typed", ["5", "5.0", 5, 5.0])
def test_a_row_s_limit_as_pandas_writes_it(typed: Any, file: Path) -> None:
    assert read(file, row(max_new_tokens=typed))[0].max_new_tokens == 5


@pytest.mark.parametrize("read", ["frame", "traces"])
def test_results_that_may_not_be_read_are_not_said_to_be_damaged(
    read: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:  # as for another user: a test may be root
        raise PermissionError(13, "Failed to open local file")

    for name in ("ParquetFile", "read_table"):
        monkeypatch.setattr(pq, name, refuse)
    path = layout.merged(tmp_path, layout.TRACES)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot be read \(permission denied\)$"):
        read_frame([path]) if read == "frame" else read_traces(tmp_path, ["a"])
