"""A run that was finished by the layout of kvx before its modules moved is finished still.

`previous_run.tar.gz` holds the results of commit 563af14: every shape of a point's id (full cache,
budgets, a rule's and a hazard model's controller), two short requests each.
"""

import json
import tarfile
from pathlib import Path

import pytest

from tests.conftest import Kvx

ARCHIVE = Path(__file__).parent / "previous_run.tar.gz"
EXPERIMENT = "experiment_name=previous"
DATA = ("dataset.sampling.n_per_bin=1", "dataset.binning.n_bins=2", "dataset.max_new_tokens=8")
SWEEP = ("press=none,snapkv,knorm", "budget=1.0,0.5", "controller=none,reactive,balanced")
IDS = {
    "none-1-aaecb420",
    "snapkv-1-d9abd76b",
    "snapkv-0.5-3bc9dbf8",
    "snapkv-0.5-reactive-c632b2ec",
    "snapkv-0.5-balanced-eb5c551a",
    "knorm-1-f4dded49",
    "knorm-0.5-31d0f4e0",
    "knorm-0.5-reactive-8d003b92",
    "knorm-0.5-balanced-24cf0d7c",
}


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "outputs" / "runs" / "previous"


def test_its_points_are_finished_and_go_through_every_stage(previous: Path, kvx: Kvx) -> None:
    points = previous / "points"
    before = {path: path.read_bytes() for path in sorted(points.glob("*/*.parquet"))}
    run = kvx("run", EXPERIMENT, "-m", *SWEEP, *DATA)
    assert (run.code, "all 9 points are complete" in run.err) == (0, True), run.err
    assert "loading model" not in run.err
    assert {path.name for path in points.iterdir()} == IDS
    assert {path: path.read_bytes() for path in before} == before
    for stage in ("score", "analyze", "report"):
        assert kvx(stage, EXPERIMENT).code == 0
    assert {row["id"] for row in map(_point, points.iterdir())} == IDS
    report = (previous / "details.md").read_text()
    assert "snapkv" in report
    assert "balanced" in report


def _point(folder: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((folder / "point.json").read_text())
    return found
