"""What a finished point says without being read whole, and what its rows say of how they came."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from kvx.cli.command import compose
from kvx.config.identity import made_with
from kvx.config.schema import Config
from kvx.engines.base import Response
from kvx.points import Point, Request
from kvx.store.point_dir import PointStore
from kvx.store.records import request_row
from tests.conftest import Kvx
from tests.test_catastrophes import write_experiment
from tests.test_store import AT, SMALL, make_point, rows, write_answers
from tests.waiting import HANGS_S


def alone(config: Config) -> Config:
    return replace(config, engine=replace(config.engine, share=False, max_rows=3))


def test_a_point_keeps_its_id_and_each_response_says_how_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs with different settings complete one point."""
    monkeypatch.chdir(tmp_path)
    point = make_point()
    other = Point(alone(point.config), point.manifest, point.manifest_dir)
    assert other.id == point.id
    PointStore(point).recover()
    for run, writer, part in ((point, "a", slice(0, 7)), (other, "b", slice(7, None))):
        store = PointStore(run)
        store.resume(writer)
        write_answers(store, part)
        store.finish()
        store.close()
    made = [json.loads(row["made_with"]) for row in rows(point, "requests")]
    assert len(made) == 20
    assert [m["engine.share"] for m in made] == [True] * 7 + [False] * 13
    assert {m["engine.max_rows"] for m in made[7:]} == {3}
    assert all(m["machine"] and m["engine.max_cache_gib"] is None for m in made)


def test_of_a_server_only_its_address_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    point = make_point()
    request = Request(point, point.manifest.entries[0])
    row = request_row(Response(request, "yes", machine="http://there/v1"), AT)
    assert json.loads(row["made_with"]) == {"machine": "http://there/v1"}


def test_what_is_recorded_is_what_can_tip_a_tie_and_names_no_point() -> None:
    names = set(made_with(compose()))
    assert names == {"engine.share", "engine.max_rows", "engine.max_cache_gib"}


def test_a_run_says_how_its_answers_were_made_and_so_does_the_report(kvx: Kvx) -> None:
    arguments = (
        "dataset.source.n_examples=60",
        "dataset.sampling.n_per_bin=2",
        "engine.max_rows=5",
    )
    assert kvx("all", *arguments).code == 0
    run = Path("outputs/runs/default")
    (point,) = run.glob("points/*")
    assert "max_rows" not in (point / "point.json").read_text().split('"provenance"')[0]
    report = (run / "details.md").read_text()
    assert report.count('"engine.max_rows": 5, "engine.share": true') == 1


def test_five_hundred_finished_points_are_recognised_fast_and_without_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    point = make_point()
    config = point.config
    for seed in range(500):
        one = Point(replace(config, seed=seed), point.manifest, point.manifest_dir)
        if seed == 0:
            PointStore(one).recover()
            store = PointStore(one)
            store.resume("a")
            write_answers(store, slice(None))
            assert store.finish() is None
            store.close()
            first = one
        else:  # the store does not look inside, so copies will do
            shutil.copytree(first.dir, one.dir, copy_function=shutil.copy2)
    code = (
        "import sys, time\n"
        "from dataclasses import replace\n"
        "from kvx.cli.command import compose\n"
        "from kvx.run.planning import plan\n"
        "from kvx.store.completion import is_done\n"
        f"config = compose(*{SMALL!r}, 'budget=0.5')\n"
        "points = plan([replace(config, seed=seed) for seed in range(500)])\n"
        "start = time.process_time()\n"
        "assert all(is_done(p) for p in points)\n"
        "print(time.process_time() - start)\n"
        "assert not {'torch', 'transformers', 'pandas', 'pyarrow'} & set(sys.modules)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, timeout=HANGS_S
    )
    assert out.returncode == 0, out.stderr
    assert float(out.stdout) < 10
    print("seconds for 500 points:", out.stdout)


def test_runs_without_the_data_beside_them(kvx: Kvx) -> None:
    write_experiment(lambda number, budget: ("Nora met Ivo", [1, 2, 3, 0], "stop"))
    examples = next(Path("outputs/data/processed").rglob("examples.parquet"))
    aside = examples.rename(examples.with_suffix(".aside"))
    for stage in ("score", "analyze"):
        outcome = kvx(stage)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
        assert "examples.parquet: missing; copy it there, or" in outcome.err
        if stage == "score":
            aside.rename(examples)
            assert kvx("score").code == 0
            examples.rename(aside)
