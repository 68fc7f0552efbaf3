"""An experiment that is not finished: watched, and reported as far as it is."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from kvx.cli.command import compose
from kvx.status.build import look
from kvx.status.watching import Look, watch
from tests.conftest import Kvx

RUN = Path("outputs/runs/default")
SWEEP = ("-m", "press=none,knorm", "budget=1.0,0.5", "dataset.source.n_examples=60",
         "dataset.sampling.n_per_bin=2")  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def half(kvx: Kvx) -> Path:
    """Three points, of which the last one lacks its mark of being finished; that mark."""
    assert kvx("run", *SWEEP).code == 0
    (done,) = RUN.glob("points/knorm-0.5-*/DONE")
    return done.rename(done.with_name("hidden"))


def see() -> Look:
    return look(compose("experiment_name=default", stage="status"))


def test_a_log_gets_a_table_for_each_change(half: Path) -> None:
    out, waits = io.StringIO(), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            half.rename(half.with_name("DONE"))

    last = watch(see(), see, 0.5, out, sleep)
    assert last.n_open == 0
    assert waits == [0.5] * 3
    tables = out.getvalue().split(f"{RUN}\n")[1:]
    assert [t.splitlines()[0] for t in tables] == [
        "3 points: 2 done, 1 unfinished",
        "3 points: 3 done",
    ]


def test_a_terminal_table_changes_in_place(half: Path) -> None:
    out = Terminal()

    def restore(_: float) -> None:
        half.rename(half.with_name("DONE"))

    last = watch(see(), see, 0.5, out, restore)
    assert last.n_open == 0
    assert "2 done, 1 unfinished" in out.getvalue()
    assert out.getvalue().rindex("3 done") > out.getvalue().rindex("\x1b[1A")  # went up first


def test_ctrl_c_ends_watching(half: Path) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    assert watch(see(), see, 0.5, io.StringIO(), interrupt).n_open == 1


def test_watching_ends_with_the_experiment(kvx: Kvx, half: Path) -> None:
    half.rename(half.with_name("DONE"))
    assert kvx("status", "status.watch=true").code == 0
    assert kvx("status", "status.watch=true", "status.every_s=0").code == 2


def test_a_report_says_what_is_missing_and_shows_the_rest(kvx: Kvx, half: Path) -> None:
    sweep = json.loads((RUN / "sweep.json").read_text())
    (asked,) = (about for i, about in sweep["points"].items() if i.startswith("knorm-0.5-"))
    never = {f"knorm-0.{n}-0000000{n}": asked for n in range(1, 5)}
    sweep["points"] |= never
    (RUN / "sweep.json").write_text(json.dumps(sweep))
    for stage in ("score", "analyze", "report"):
        assert kvx(stage).code == 0
    text = (RUN / "report.md").read_text()
    assert "2 of 7 points" in text
    assert f"Point {half.parent.name} is in no table: unfinished." in text
    assert "4 points are in no table: not begun (knorm-0.1-00000001, " in text
    assert "knorm-0.4-00000004" not in text  # three are named, then their number
    stats = pq.read_table(RUN / "bin_stats.parquet").to_pandas()
    assert stats["point_id"].nunique() == 2

    half.rename(half.with_name("DONE"))
    assert kvx("report").code == 2  # it would miss the point that has finished since
    for stage in ("score", "analyze", "report"):
        assert kvx(stage).code == 0
    assert "3 of 7 points" in (RUN / "report.md").read_text()
