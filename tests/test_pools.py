"""Who works on what: what pools and the record of submitted jobs decide, without a cluster or a GPU."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kvx.cli import compose
from kvx.config import Config
from kvx.errors import UserError
from kvx.points import Point, experiment_dir
from kvx.run import jobs
from kvx.run.bundle import plan, run_points
from kvx.run.jobs import Submission
from kvx.run.units import Outcome, Unit
from kvx.store import locks

SMALL = ("press=knorm", "budget=0.5", "dataset.source.n_examples=40",
         "dataset.sampling.n_per_bin=2", "latency.n_per_bin=1", "latency.repeats=2")  # fmt: skip


@pytest.fixture(autouse=True)
def somewhere_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configs(*overrides: str) -> list[Config]:
    return [compose(*SMALL, *overrides)]


def submission(job: str, points: Sequence[Point]) -> Submission:
    return Submission([job], [p.id for p in points], "logs", "now")


class Idle:
    """A pool that only notes what it was given."""

    def __init__(self) -> None:
        self.units: list[Unit] = []

    def check(self, points: Sequence[Point]) -> None:
        pass

    def slices(self, points: Sequence[Point]) -> int:
        return 2

    def run(self, units: Sequence[Unit]) -> list[Outcome]:
        self.units += units
        raise KeyboardInterrupt


def test_who_submits_while_another_is_about_to_claim_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked, claim, pool = configs(), locks.claim, Idle()
    points = plan(asked)

    def another_was_quicker(folders: Sequence[Path]) -> locks.Claim:
        folder = experiment_dir(asked[0])
        folder.mkdir(parents=True)
        jobs.remember(folder, submission("12", points))
        return claim(folders)

    monkeypatch.setattr(jobs, "active_jobs", lambda ids: {f"{i}_0": "PENDING" for i in ids})
    monkeypatch.setattr(locks, "claim", another_was_quicker)
    with pytest.raises(UserError, match="SLURM job 12 still wait"):
        run_points(asked, pool)
    assert pool.units == []


def test_jobs_that_slurm_is_silent_about_are_not_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    points = plan(configs())
    folder = experiment_dir(points[0].config)
    folder.mkdir(parents=True)
    monkeypatch.setattr(jobs, "active_jobs", lambda ids: {} if not list(ids) else None)
    jobs.refuse_if_submitted(points)
    jobs.remember(folder, submission("12", points))
    with pytest.raises(UserError, match=r"whether jobs 12 still work.*delete .*jobs\.json"):
        jobs.refuse_if_submitted(points)
    jobs.refuse_if_submitted(plan(configs("seed=5")))


def test_submissions_noted_at_once_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(ids: Any) -> dict[str, str]:
        time.sleep(0.05)
        return {f"{i}_0": "RUNNING" for i in ids}

    monkeypatch.setattr(jobs, "active_jobs", slow)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: jobs.remember(tmp_path, submission(str(n), [])), range(4)))
    assert sorted(s.job_ids[0] for s in jobs.read(tmp_path)) == ["0", "1", "2", "3"]


def test_shards_of_two_runs_have_unlike_names() -> None:
    names: list[list[str]] = []
    for _ in range(2):
        pool = Idle()
        with pytest.raises(KeyboardInterrupt):
            run_points(configs("measure=both"), pool)
        names.append([u.writer for u in pool.units])
        assert [u.slice for u in pool.units] == ["s001of002", "s002of002", "alone"]
    assert set(names[0]).isdisjoint(names[1])
