"""kvx.compare: two results example by example, whoever measured them."""

import json
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kvx.cli.arguments import named
from kvx.compare.inspect_log import read_log
from kvx.compare.kvpress_predictions import parsed, read_predictions
from kvx.compare.lm_eval_samples import read_samples
from kvx.compare.page import Page
from kvx.compare.pairing import pairs
from kvx.compare.places import told_apart
from kvx.compare.results import Result, text_key
from kvx.compare.table import compare, frame, matches
from kvx.errors import UserError
from kvx.report.booktabs import booktabs
from kvx.stats.paired import mcnemar_exact, newcombe_interval
from tests.conftest import Kvx

FOREIGN = Path(__file__).parent / "foreign"  # written by the libraries and versions of its folders
LM_EVAL = FOREIGN / "lm_eval-0.4.13"
INSPECT = FOREIGN / "inspect_ai-0.3.285"
KVPRESS = FOREIGN / "kvpress-0.5.5"
FULL, HALF = (
    KVPRESS / f"ruler__4096__tiny_recall__{p}" for p in ("no_press__0.00", "snapkv__0.50")
)
SMALL = ("dataset.source.n_examples=60", "dataset.sampling.n_per_bin=4")


def samples(side: str, task: str) -> Path:
    (path,) = (LM_EVAL / side).glob(f"samples_{task}_*.jsonl")
    return path


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "compare.csv")


def result(ids: Sequence[str | None], scores: list[float], **about: list[str]) -> Result:
    """A made-up result with one metric."""
    examples = pd.DataFrame(
        {"id": ids, "prompt": None, "asked": None, "references": None, "cluster": None},
        dtype=object,
    )
    for name, values in about.items():
        examples[name] = values
    return Result(Path("made-up"), "made-up", "made-up", examples,
                  pd.DataFrame({"m": scores}), {"m": True})  # fmt: skip


def test_lm_eval_samples_pair_by_document_and_filters_are_metrics() -> None:
    full, wrong = (read_samples(samples(side, "sums"), None) for side in ("full", "wrong"))
    assert list(full.scores) == ["exact_match,strict", "exact_match,flexible"]
    assert len(full.examples) == 6  # of the file's 12 rows
    found = compare(full, wrong, None, None, 0.95)
    assert found is not None
    assert (found.pairs.by, found.headline.n_pairs) == ("id", 6)
    assert found.headline.difference == -0.5
    assert found.lost_and_won == (3, 0)
    assert found.headline.p == mcnemar_exact(3, 0) == 0.25
    assert found.headline.interval == newcombe_interval(3, 3, 0, 0, 0.95)
    assert found.a.settings["model_args"] == {"wrong": ""}


def test_a_failed_sample_of_inspect_counts_as_wrong() -> None:
    full, wrong = read_log(INSPECT / "full.json", None), read_log(INSPECT / "wrong.eval", None)
    found = compare(full, wrong, "match", None, 0.95)
    assert found is not None
    # inspect itself says 0.6: 3 of the 5 samples that did not fail
    assert (found.missing_b, found.complete.mean_a, found.headline.mean_a) == (1, 0.6, 0.5)
    assert found.headline.difference == -0.5
    assert found.complete.difference == pytest.approx(-0.4)


def test_epochs_of_inspect_are_one_example() -> None:
    epochs = read_log(INSPECT / "epochs.eval", None)
    assert list(epochs.examples["id"]) == [f"s{i}" for i in range(6)]
    assert epochs.scores["match"].tolist() == [1.0] * 6
    assert epochs.notes == ["scores are means of 2 epochs"]


def test_clusters_are_a_field_of_the_examples() -> None:
    log = read_log(INSPECT / "full.json", "text")
    assert log.examples["cluster"].tolist() == ["0", "0", "1", "1", "2", "2"]
    rows = read_samples(samples("full", "sums"), "c")
    assert rows.examples["cluster"].tolist() == ["0", "2", "4", "6", "8", "10"]
    with pytest.raises(UserError, match=r"cluster=story is no field of doc; there are a, c"):
        read_samples(samples("full", "sums"), "story")


def test_predictions_of_kvpress_are_scored_as_kvpress_does() -> None:
    full, half = (read_predictions(f / "predictions.csv", None, None) for f in (FULL, HALF))
    told = json.loads((HALF / "metrics.json").read_text())
    tasks = pd.read_csv(HALF / "predictions.csv")["task"]
    ours = half.scores["string_match"].groupby(tasks).mean() * 100
    assert ours.to_dict() == {task: m["string_match"] for task, m in told.items()}
    assert not half.notes
    found = compare(full, half, None, None, 0.95)
    assert found is not None
    assert (found.pairs.by, found.headline.n_pairs) == ("asked", 12)
    assert found.headline.difference == pytest.approx(
        -1.25 / 12
    )  # 0 of 4 and 3 of 4 references lost


def test_other_means_than_those_of_kvpress_are_told(tmp_path: Path) -> None:
    shutil.copytree(HALF, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").write_text('{"qa_1": {"string_match": 50.0}}')
    (note,) = read_predictions(tmp_path / "run" / "predictions.csv", None, None).notes
    assert note.endswith("metrics.json tells 50.0 of qa_1, these answers give 100.00")


@pytest.mark.parametrize(
    ("cell", "references"),
    [
        ("['124' '11' '52']", ["124", "11", "52"]),  # as NumPy prints an array
        ("['a' \"it's\"\n 'c']", ["a", "it's", "c"]),
        ("['a', 'b']", ["a", "b"]),
        ("[3 14]", ["3", "14"]),
        ("None", ["None"]),
    ],
)
def test_references_of_a_cell(cell: str, references: list[str]) -> None:
    assert parsed(cell) == references


def test_ids_that_name_other_examples_do_not_pair() -> None:
    ids = [str(i) for i in range(20)]
    ours = result(ids, [1.0] * 20, references=[f"x{i}" for i in ids], asked=[f"q{i}" for i in ids])
    moved = [f"x{19 - i}" for i in range(20)]
    theirs = result(ids, [0.0] * 20, references=moved, asked=[f"q{19 - i}" for i in range(20)])
    found = pairs(ours, theirs)
    assert found.by == "asked"
    assert found.b.tolist() == list(range(19, -1, -1))


def test_one_id_with_other_references_is_left_out_and_told() -> None:
    ids = [str(i) for i in range(20)]
    ours = result(ids, [1.0] * 20, references=ids)
    theirs = result(ids, [1.0] * 20, references=[*ids[:-1], "other"])
    found = pairs(ours, theirs)
    assert len(found.a) == 19
    assert found.notes == ["1 example with equal ids have other reference answers; left out"]


def test_equal_texts_pair_in_their_order_or_not_at_all() -> None:
    twice = [text_key("q"), text_key("q"), text_key("r")]
    ours = result([None] * 3, [0.0, 1.0, 1.0], asked=twice)
    theirs = result([None] * 3, [1.0, 1.0, 0.0], asked=twice)
    found = pairs(ours, theirs)
    assert (found.a.tolist(), found.b.tolist()) == ([0, 1, 2], [0, 1, 2])
    assert found.notes[0].startswith("2 examples of a share questions and reference answers")
    fewer = result([None] * 2, [1.0, 0.0], asked=twice[1:])
    assert pairs(ours, fewer).a.tolist() == [2]


def test_missing_is_wrong_also_where_lower_is_better() -> None:
    ids = [str(i) for i in range(10)]
    ours = result(ids, [0.0] * 10)
    theirs = result(ids, [0.0] * 9 + [np.nan])
    found = compare(ours, theirs, None, None, 0.95)
    assert found is not None
    assert found.headline.difference == 0.0
    down = {"m": False}
    ours, theirs = (Result(r.path, "x", "x", r.examples, r.scores, down) for r in (ours, theirs))
    found = compare(ours, theirs, None, None, 0.95)
    assert found is not None
    assert found.headline.difference == 0.1
    assert found.lost_and_won == (1, 0)


def test_time_outs_of_a_full_cache_are_no_wins_of_a_press() -> None:
    ids = [str(i) for i in range(40)]
    full = replace(result(ids, [np.nan] * 10 + [1.0] * 30), is_full=True)
    press = result(ids, [1.0] * 39 + [np.nan])
    found = compare(full, press, None, None, 0.95)
    back = compare(press, full, None, None, 0.95)
    both = compare(replace(full, is_full=False), press, None, None, 0.95)
    assert found is not None
    assert back is not None
    assert both is not None
    assert (found.reference, back.reference, both.reference) == ("a", "b", None)
    # of the 30 prompts that the full cache answered, the press has no answer to one
    assert (found.headline.n_pairs, found.lost_and_won, found.headline.p) == (30, (1, 0), 1.0)
    assert found.headline.difference == pytest.approx(-1 / 30)
    assert back.headline.difference == pytest.approx(1 / 30)
    assert (found.missing_a, found.missing_b, found.complete.n_pairs) == (10, 1, 29)
    # of two presses neither is the reference
    assert (both.headline.n_pairs, both.lost_and_won) == (40, (1, 10))
    rows = frame([found])
    told = Page("full", "press", [found], rows, 0, 0.95).text()
    header, row = told.splitlines()[3:5]
    assert "     p  missing a  missing b  lost  won  pairs  clusters" in header
    assert row.split()[-10:-4] == ["10", "1", "1", "0", "30", "30"]
    assert "a is a full cache: pairs without its answer are left out" in told
    assert "other missing answers count as wrong" in told


def test_scores_beyond_0_and_1_have_no_worst_value() -> None:
    ids = [str(i) for i in range(10)]
    found = compare(result(ids, [9.0] * 10), result(ids, [7.5] * 9 + [np.nan]), None, None, 0.95)
    assert found is not None
    assert (found.headline.n_pairs, found.headline.difference) == (9, -1.5)


def test_points_match_by_press_and_budget_across_models() -> None:
    def at(model: str, press: str, budget: str) -> Result:
        made = result(["1"], [1.0])
        place = {"press": press, "budget": budget, "model": model}
        return Result(made.path, "kvx", f"{model}-{press}-{budget}", made.examples, made.scores,
                      made.higher_is_better, place)  # fmt: skip

    left = [at("m", "snapkv", b) for b in ("1", "0.5")] + [at("m", "knorm", "0.5")]
    right = [at("n", "snapkv", b) for b in ("0.5", "0.2")] + [at("n", "tova", "0.5")]
    found = [(a.label, b.label) for a, b in matches(left, right)]
    assert found == [("m-snapkv-0.5", "n-snapkv-0.5")]
    assert len(matches(left[:1], right)) == 3  # a single one is compared with all


def sinks(n_sink: int, budget: str, **more: int) -> Result:
    """A result of streaming with these parameters."""
    made = result(["1"], [1.0])
    place = {"press": "streaming", "budget": budget, "model": "m", "seed": "0"}
    return replace(
        made, label=f"{n_sink}", place=place, behind={"press": {"n_sink": n_sink, **more}}
    )


def test_presses_of_one_name_pair_by_the_parameters_that_differ_within_a_side() -> None:
    left = [sinks(2, "0.5"), sinks(3, "0.5"), sinks(3, "0.2")]
    one, other = told_apart(left, [sinks(2, "0.5", window=8), sinks(3, "0.5", window=8)])
    assert [r.place["press"] for r in one] == [f"streaming(n_sink={n})" for n in (2, 3, 3)]
    assert [(a.label, b.label) for a, b in matches(one, other)] == [("2", "2"), ("3", "3")]
    # also where only one side has several
    one, other = told_apart(left, [sinks(3, "0.5"), sinks(3, "0.2")])
    found = [(a.label, a.place["budget"]) for a, _ in matches(one, other)]
    assert found == [("3", "0.5"), ("3", "0.2")]
    # and where the sides alone differ, they are compared
    one, other = told_apart(left[:1], [sinks(3, "0.5")])
    assert one[0].place["press"] == other[0].place["press"] == "streaming"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experiments, the second with fewer examples and another cache width."""
    from kvx.cli.command import run_stage

    output = tmp_path_factory.mktemp("outputs")
    sweep = ("-m", "press=none,snapkv", "budget=1.0,0.5", f"paths.output={output}", *SMALL)
    logs = f"paths.multirun={output}/logs"
    for name, more in (("one", ()), ("two", ("model.dtype=bfloat16",))):
        for stage in ("run", "score"):
            assert run_stage(stage, [f"experiment_name={name}", logs, *sweep, *more]) == 0
    return output


def test_two_experiments_compare_point_by_point(
    kvx: Kvx, outputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert kvx("compare", "one", "two", f"paths.output={outputs}").code == 0
    folder = outputs / "compare" / "one--two"
    found = table(folder)
    assert len(found) == 3  # none, snapkv at 1 and at 0.5
    assert (found["n_pairs"] == 20).all()
    assert (found["paired_by"] == "id").all()
    text = (folder / "compare.md").read_text()
    assert "model.dtype: float32 → bfloat16" in text
    assert text.count("→") == 1
    examples = pd.read_csv(folder / "examples.csv")
    means = examples.groupby("comparison")[["score_a", "score_b"]].mean()
    assert means["score_a"].to_numpy() == pytest.approx(found["mean_a"])
    tex = (folder / "compare.tex").read_text()
    assert r"\toprule" in tex
    assert "−" not in tex


def test_a_point_is_named_by_the_start_of_its_id(kvx: Kvx, outputs: Path) -> None:
    where = f"paths.output={outputs}"
    assert kvx("compare", "one/none", "one/snapkv-0.5", where, "compare.output=here").code == 0
    (row,) = table(Path("here")).to_dict("records")
    assert row["difference"] == pytest.approx(row["mean_b"] - row["mean_a"])
    assert row["n_lost"] - row["n_won"] == round((row["mean_a"] - row["mean_b"]) * 20)
    code, err = kvx("compare", "one/tova", "two", where).__dict__.values()
    assert code == 2
    assert "no finished point begins with tova; there are none-1-" in err


def test_an_experiment_against_a_log_of_the_same_prompts(
    kvx: Kvx, outputs: Path, tmp_path: Path
) -> None:
    """Prompts pair where ids differ, whatever white space the other tool puts between parts."""
    import pyarrow.parquet as pq

    (made,) = (outputs / "data/processed/recall__kv").glob("*/examples.parquet")
    rows = pq.read_table(made).to_pylist()
    log = json.loads((INSPECT / "full.json").read_text())
    first = log["samples"][0]
    log["samples"] = [
        first | {"id": n, "input": f"{r['context']}\n\n{r['question']}", "target": r["answers"],
                 "scores": {"exact_match": {"value": "C"}}}
        for n, r in enumerate(rows)
    ]  # fmt: skip
    log["eval"]["dataset"]["sample_ids"] = list(range(len(rows)))
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    found = kvx("compare", str(path), "one/none", f"paths.output={outputs}", "compare.output=here")
    assert found.code == 0
    (row,) = table(Path("here")).to_dict("records")
    assert (row["paired_by"], row["n_pairs"], row["mean_a"]) == ("prompt", 20, 1.0)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("", "a.csv", "a.csv: is empty"),
        ("x,y\n1,2\n", "a.csv", "has no columns predicted_answer and answer"),
        ("{}", "a.json", "is no log of inspect_ai; it has no `eval`"),
        ("{", "a.json", "a.json: is not JSON"),
        ('{"eval": {}, "version": 2}', "a.json", "holds no samples"),
        ("x", "a.eval", "is no log of inspect_ai, or was cut off while written"),
        ("[1]\n", "samples_x.jsonl", "line 1 has no doc_id and doc"),
        ('{"doc_id": 0,\n', "samples_x.jsonl", "line 1 is not JSON"),
        ('{"doc_id": 0, "doc": {}, "acc": [1]}\n', "samples_x.jsonl", "holds no metric that is a"),
        (
            '{"doc_id": 0, "doc": {}, "acc": 1}\n' * 2,
            "samples_x.jsonl",
            "document 0 is there twice; it cannot be told which",
        ),
        ('{"doc_id": 0, "doc": {}, "acc": Infinity}\n', "samples_x.jsonl", "acc is infinite"),
        ("x", "a.xlsx", "not a kind of file that is known here"),
    ],
)
def test_a_wrong_file_is_one_sentence_that_names_it(
    kvx: Kvx, content: str, name: str, said: str
) -> None:
    Path(name).write_text(content)
    found = kvx("compare", name, str(samples("full", "sums")))
    assert found.code == 2
    assert name in found.err
    assert said in found.err
    assert found.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "compare.a: give two results, as in kvx compare A B"),
        (("x", "y"), "compare.a=x: no such file, folder or experiment"),
        (("x", "y", "z"), "z: one too many; this stage takes 2 names"),
        ((LM_EVAL / "full", INSPECT / "full.json", "compare.metric=f1"), "is not scored by it"),
        ((FULL, LM_EVAL / "full"), "have no example in common (12 and 6 examples)"),
        ((FULL / "metrics.json", HALF), "name the predictions.csv beside it"),
    ],
)
def test_what_cannot_be_compared(kvx: Kvx, arguments: tuple[object, ...], said: str) -> None:
    found = kvx("compare", *map(str, arguments))
    assert found.code == 2
    assert said in found.err
    assert found.err.count("\n") == 1


def test_a_doubled_sample_is_refused(tmp_path: Path) -> None:
    log = json.loads((INSPECT / "full.json").read_text())
    log["samples"].append(log["samples"][0])
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    with pytest.raises(UserError, match="sample s0 is there twice in one epoch"):
        read_log(path, None)


def test_samples_that_a_stopped_run_did_not_reach_are_missing(tmp_path: Path) -> None:
    log = json.loads((INSPECT / "full.json").read_text())
    log["samples"], log["status"] = log["samples"][:4], "cancelled"
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log))
    found = compare(read_log(INSPECT / "full.json", None), read_log(path, None), None, None, 0.95)
    assert found is not None
    assert (found.headline.n_pairs, found.missing_b) == (6, 2)
    assert found.b.notes == ["the run ended with status cancelled"]


def test_a_damaged_zip_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "log.eval"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other.json", "{}")
    with pytest.raises(UserError, match=r"log.eval: is no log of inspect_ai; it has no header"):
        read_log(path, None)


def test_arguments_without_a_name_get_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pretrained=x.csv").touch()
    typed = ["a b", "compare.metric=m", "pretrained=x.csv", "--config-dir", "conf"]
    assert named(("compare.a", "compare.b"), typed) == [
        "compare.a='a b'", "compare.metric=m", "compare.b='pretrained=x.csv'", *typed[3:],
    ]  # fmt: skip
    assert named((), typed) == typed


def test_booktabs_escapes() -> None:
    assert booktabs(["a_b", "b − a"], [["50%", "−0.1"]]) == (
        "\\begin{tabular}{lr}\n\\toprule\na\\_b & b $-$ a \\\\\n\\midrule\n50\\% & $-$0.1 \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )
