"""A user's metric: found by dotted path or entry point; an edit of it makes scores stale."""

import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import Kvx

from kvx.config.schema import Config
from kvx.errors import UserError
from kvx.report.verdicts import Verdict, verdict
from kvx.scoring.metrics import METRICS, Score, measured, metric, resolve
from tests.test_catastrophes import write_experiment

RUN = ("dataset.source.n_examples=12", "dataset.sampling.n_per_bin=2", "dataset.binning.n_bins=1")
FIRST_LETTER = """
from kvx.scoring.metrics import metric


@metric(binary=True)
def first_letter(prediction, answers):
    return float(any(prediction.strip()[:1] == answer[:1] for answer in answers))


@metric(higher_is_better=False)
def distance(prediction, answers):
    return min(1.0, abs(len(prediction) - len(answers[0])) / 100)


@metric(binary=True, higher_is_better=False)
def rambles(prediction, answers):
    return float(len(prediction.split()) > 5)


@metric(higher_is_better=False)
def words(prediction, answers):
    return min(1.0, len(prediction.split()) / 10)


def plain(prediction, answers):
    return 1.0
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's on the path."""
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    file = tmp_path / "code" / f"own_{tmp_path.name}.py"  # another module in every test
    file.parent.mkdir()
    file.write_text(FIRST_LETTER)
    yield file
    sys.modules.pop(file.stem, None)


def scores() -> Any:
    (path,) = Path("outputs/runs/default/points").glob("*/scores.parquet")
    return pq.read_table(path).to_pandas()


def test_a_metric_by_dotted_path_scores_a_run_and_its_edit_makes_scores_stale(
    kvx: Kvx, mine: Path
) -> None:
    name = f"{mine.stem}.first_letter"
    own = f"score.metrics=[{name},exact_match]"
    assert kvx("run", *RUN).code == 0
    outcome = kvx("score", *RUN, own)
    assert outcome.code == 0, outcome.err
    table = scores()
    assert set(table[table["primary"]]["metric"]) == {name}
    rows = table[table["metric"] == name]
    right = [
        float(p.strip()[:1] in {a[:1] for a in r.split(" | ")})
        for p, r in zip(rows["prediction_normalized"], rows["reference_normalized"], strict=True)
    ]
    assert list(rows["score"]) == right
    assert set(table["metric"]) == {name, "exact_match"}
    assert "nothing to do" in kvx("score", *RUN, own).err
    mine.write_text(mine.read_text().replace("return float(any(", "return 1.0 - float(any("))
    assert "1 points scored" in kvx("score", *RUN, own).err
    table = scores()
    assert list(table[table["metric"] == name]["score"]) == [1.0 - value for value in right]


def test_a_run_with_an_own_metric_is_reported(kvx: Kvx, mine: Path) -> None:
    name = f"{mine.stem}.first_letter"
    outcome = kvx("all", *RUN, f"dataset.metrics=[{name}]", "analyze.n_boot=100")
    assert outcome.code == 0, outcome.err
    stats = pq.read_table("outputs/runs/default/bin_stats.parquet").to_pandas()
    assert set(stats["metric"]) == {name}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('no key')", "raises KeyError: 'no key' ("),
        ("return 1.5", "returns 1.5; a score is a number from 0 to 1"),
        ("return None", "returns None; a score is a number from 0 to 1"),
        ("return float('nan')", "returns nan; a score is a number from 0 to 1"),
        ("return 0.5", "returns 0.5; declared binary, it must be 0 or 1"),
    ],
)
def test_a_wrong_metric_is_one_line_with_its_name_and_the_request(
    kvx: Kvx, mine: Path, body: str, said: str
) -> None:
    mine.write_text(
        "from kvx.scoring.metrics import metric\n@metric(binary=True)\n"
        f"def broken(prediction, answers):\n    {body}\n"
    )
    outcome = kvx("all", *RUN, f"dataset.metrics=[{mine.stem}.broken]")
    assert outcome.code == 2
    last = outcome.err.splitlines()[-1]
    assert last.startswith(f"kvx all: metric {mine.stem}.broken: request none-1-")
    assert said in last
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("exact_mtach", "did you mean exact_match? There is "),
        ("bertscore", "unknown metric 'bertscore'; choose from "),
        ("{mine}.absent", "cannot be imported (AttributeError: "),
        ("no_such_module_of_anybody.f", "cannot be imported (ModuleNotFoundError: "),
        ("{mine}.plain", "is not a metric; decorate it with @metric"),
        ("{mine}.distance", "is better where it is lower; name a metric before it"),
    ],
)
def test_a_name_without_a_metric_is_one_line(mine: Path, name: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        resolve([name.format(mine=mine.stem)])
    assert str(error.value).startswith("dataset.metrics: ")
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_lower_is_better_is_a_metric_beside_the_primary_one(mine: Path) -> None:
    found = resolve(["exact_match", f"{mine.stem}.distance"])[f"{mine.stem}.distance"]
    assert found("x" * 51, ["x"]) == Score(0.5, "x" * 51, "x")


def rambling(number: int, budget: float) -> tuple[str, list[int], str]:
    """Compressed, 0 to 11 say more than the full cache, 12 and 13 less."""
    short, long = "Nora met Ivo", "Nora met Ivo and then they both met Ada"
    more = number < 12 if budget < 1 else number in (12, 13)
    return (long if more else short), [1, 2, 3, 0], "stop"


def test_a_rise_is_a_loss_where_lower_is_better(kvx: Kvx, mine: Path) -> None:
    binary, graded = (f"{mine.stem}.{name}" for name in ("rambles", "words"))
    metrics = f"dataset.metrics=[instruction_kept,{binary},{graded}]"
    write_experiment(rambling, "press=knorm", metrics)
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage, "analyze.n_boot=500")
        assert outcome.code == 0, outcome.err
    frame = pq.read_table("outputs/runs/default/comparisons.parquet").to_pandas()
    rows = frame[frame["bin"] == -1].set_index("metric")
    assert rows["higher_is_better"].to_dict() == {
        "instruction_kept": True, binary: False, graded: False
    }  # fmt: skip
    for name, ci_method in ((binary, "newcombe"), (graded, "cluster_t")):
        row = rows.loc[name]
        assert (row["n_lost"], row["n_won"], row["ci_method"]) == (12, 2, ci_method)
        assert 0 < row["ci_low"] < row["difference"] < row["ci_high"]
        assert verdict(row, 0.05) is Verdict.loss
        assert verdict(row.to_dict() | {"higher_is_better": True}, 0.05) is Verdict.gain
    assert rows.loc[binary, "difference"] == pytest.approx(10 / 40)
    # the full cache has room to get worse: it is at 0.05, and 1 would be the worst
    assert not rows.loc[binary, "baseline_floor"]
    shown = f"{binary} (lower is better)"
    low, high = rows.loc[binary, ["ci_low", "ci_high"]]
    change = f"+0.25 [{low:+.2f}, {high:+.2f}]"
    said = f"| knorm | 0.5 | {shown} | 0.05 | 0.30 | {change} | 40 | 12 | 2 |"
    assert said in Path("outputs/runs/default/details.md").read_text()
    stats = pq.read_table("outputs/runs/default/bin_stats.parquet").to_pandas()
    assert set(stats.loc[~stats["higher_is_better"], "metric"]) == {binary, graded}


def test_an_entry_point_names_a_metric(mine: Path) -> None:
    info = mine.parent / "own_metrics-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-metrics\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[kvx.metrics]\nfirst_letter = {mine.stem}:first_letter\n"
    )
    assert resolve(["first_letter"])["first_letter"]("abc", ["axe"]).value == 1.0
    before = METRICS.sources(["first_letter", "exact_match"])
    assert list(before) == ["first_letter"]
    mine.write_text(FIRST_LETTER + "\n# changed\n")
    assert METRICS.sources(["first_letter"]) != before
    with pytest.raises(UserError, match="did you mean first_letter"):
        resolve(["first_leter"])


def test_scores_of_kvx_own_metrics_have_no_source_beside_the_package() -> None:
    assert METRICS.sources(Config().dataset.metrics) == {}


def test_a_binary_share_is_0_or_1_with_one_reference_only() -> None:
    half = metric(binary="one reference")(lambda prediction, answers: 0.5)
    assert measured("half", half, "", ["a", "b"], "r").value == 0.5
    with pytest.raises(UserError, match=r"metric half: request r: returns 0\.5; declared binary"):
        measured("half", half, "", ["a"], "r")
