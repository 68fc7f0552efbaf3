"""What pools and the record of submitted jobs decide, without a cluster or a GPU."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from submitit.core.utils import UncompletedJobError

from kvx.cli.command import compose
from kvx.config.folders import package_dir
from kvx.config.measures import Measure
from kvx.config.schema import Config
from kvx.engines.activity import ACTIVITY, Seen
from kvx.engines.base import PointFailed, PointWork, Response
from kvx.errors import RunFailedError, Submitted, UserError
from kvx.points import Point, experiment_dir
from kvx.run import slurm_jobs
from kvx.run.bundle import run_points
from kvx.run.planning import plan
from kvx.run.pools.local import Local, _Worker
from kvx.run.pools.slurm import Slurm, SlurmWorker, _ending, gpus_of, room
from kvx.run.progress import Meter
from kvx.run.slurm_jobs import Submission
from kvx.run.time_left import Load
from kvx.run.units import Outcome, Unit
from kvx.run.worker import run_unit, serve
from kvx.store import journal, locks
from kvx.store.completion import is_done
from kvx.store.point_dir import PointStore

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
        slurm_jobs.remember(folder, submission("12", points))
        return claim(folders)

    monkeypatch.setattr(slurm_jobs, "active_jobs", lambda ids: {f"{i}_0": "PENDING" for i in ids})
    monkeypatch.setattr(locks, "claim", another_was_quicker)
    with pytest.raises(UserError, match="SLURM job 12 still wait"):
        run_points(asked, pool)
    assert pool.units == []


def test_jobs_that_slurm_is_silent_about_are_not_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    points = plan(configs())
    folder = experiment_dir(points[0].config)
    folder.mkdir(parents=True)
    monkeypatch.setattr(slurm_jobs, "active_jobs", lambda ids: {} if not list(ids) else None)
    slurm_jobs.refuse_if_submitted(points)
    slurm_jobs.remember(folder, submission("12", points))
    with pytest.raises(UserError, match=r"whether SLURM jobs 12 still work.*delete .*jobs\.json"):
        slurm_jobs.refuse_if_submitted(points)
    slurm_jobs.refuse_if_submitted(plan(configs("seed=5")))


def test_submissions_noted_at_once_are_all_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(ids: Any) -> dict[str, str]:
        time.sleep(0.05)
        return {f"{i}_0": "RUNNING" for i in ids}

    monkeypatch.setattr(slurm_jobs, "active_jobs", slow)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda n: slurm_jobs.remember(tmp_path, submission(str(n), [])), range(4)))
    assert sorted(s.job_ids[0] for s in slurm_jobs.read(tmp_path)) == ["0", "1", "2", "3"]


def test_shards_of_two_runs_have_unlike_names() -> None:
    names: list[list[str]] = []
    for _ in range(2):
        pool = Idle()
        with pytest.raises(KeyboardInterrupt):
            run_points(configs("measure=both"), pool)
        names.append([u.writer for u in pool.units])
        assert [u.slice for u in pool.units] == ["s001of002", "s002of002", "alone"]
    assert set(names[0]).isdisjoint(names[1])


SETTINGS: dict[str, Any] = {
    "submitit_folder": "jobs/%j", "nodes": 1, "tasks_per_node": 1, "array_parallelism": 256,
    "max_num_timeout": 1, "gres": None, "gpus_per_node": None, "gpus_per_task": None,
    "cpus_per_task": None, "partition": None, "timeout_min": 240, "signal_delay_s": 120,
}  # fmt: skip


def submitted(monkeypatch: pytest.MonkeyPatch, measure: str, **settings: Any) -> list[Any]:
    """What submitit is told about the arrays of a sweep, with how many jobs are in each."""
    told: list[Any] = []

    class Executor:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def update_parameters(self, **parameters: Any) -> None:
            self.parameters = parameters

        def map_array(self, _: Any, work: Sequence[Any]) -> list[Any]:
            told.append((len(work), self.parameters))
            return [SimpleNamespace(job_id=f"{len(told)}_{i}") for i in range(len(work))]

    monkeypatch.setattr("submitit.AutoExecutor", Executor)
    monkeypatch.setattr("kvx.run.pools.slurm.max_array_size", lambda: 100)
    monkeypatch.setattr(Slurm, "check", lambda *_: None)
    monkeypatch.setattr(slurm_jobs, "active_jobs", lambda ids: {})
    pool = Slurm(slices=2, wait=False, **(SETTINGS | settings))
    with pytest.raises(Submitted):
        run_points(configs(f"measure={measure}"), pool)
    return told


@pytest.mark.parametrize(
    ("settings", "alone"),
    [({}, True), ({"gpus_per_node": 1}, False), ({"gres": "gpu:1"}, False),
     ({"gpus_per_task": 1}, False)],
)  # fmt: skip
def test_latencies_are_measured_alone_with_and_without_answers_before(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], alone: bool
) -> None:
    ((n, parameters),) = submitted(monkeypatch, "latency", **settings)
    assert (n, "slurm_dependency" in parameters) == (1, False)
    assert parameters.get("slurm_exclusive", False) is alone
    assert parameters["slurm_array_parallelism"] == (1 if alone else 256)
    (n, parameters), (_, after) = submitted(monkeypatch, "both", **settings)
    assert (n, parameters.get("slurm_exclusive")) == (2, None)
    assert after["slurm_dependency"] == "afterany:1"
    assert after.get("slurm_exclusive", False) is alone


@pytest.mark.parametrize(
    ("gres", "n"),
    [("gpu", 1), ("gpu:2", 2), ("gpu:a100", 1), ("gpu:a100:2", 2), ("gres:gpu:3", 3),
     ("gpu:a100:1,gpu:v100:2", 3), ("license:1", 4), (None, 4)],
)  # fmt: skip
def test_gpus_are_counted_whichever_way_they_are_asked_for(gres: str | None, n: int) -> None:
    assert gpus_of(SETTINGS | {"gres": gres, "gpus_per_node": 4}) == n


def test_only_nodes_that_take_jobs_are_room(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {"idle": 1, "mix": 2, "alloc": 4, "idle~": 8, "down": 16, "down*": 32, "drain": 64,
              "drng": 128, "idle*": 256, "maint": 512}  # fmt: skip
    listed = "".join(f"all*|n{n}|{n}|{state}|(null)\n" for state, n in states.items())
    answer = subprocess.CompletedProcess([], 0, listed)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert room(SETTINGS) == 1 + 2 + 4 + 8


def test_without_sinfo_slices_must_be_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "nowhere")
    with pytest.raises(UserError, match=r"no sinfo here.*set hydra\.launcher\.slices"):
        room(SETTINGS)


def test_a_job_that_may_not_be_queued_again_is_interrupted_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Submitit's handler raises a RuntimeError, which an engine would take for a model's."""
    saw: list[type[BaseException]] = []

    def give_up(*_: Any) -> None:
        raise UncompletedJobError("timed-out too many times")

    def attempt(*_: Any) -> None:
        try:
            signal.raise_signal(signal.SIGUSR2)
        except BaseException as error:
            saw.append(type(error))
            raise

    monkeypatch.setattr("kvx.run.worker.attempt", attempt)
    monkeypatch.setattr("kvx.run.worker.log_to_stderr", lambda: None)
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, give_up)
    try:
        with pytest.raises(UncompletedJobError, match="timed-out too many times"):
            SlurmWorker()((Unit((), (), "s001of001-0", Measure.quality, Load(1)),))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert saw == [KeyboardInterrupt]


class Process:
    """Alive until told otherwise."""

    pid, code = 1, None

    def poll(self) -> int | None:
        return self.code


def test_units_that_run_alone_are_on_gpus_of_their_own_whoever_was_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    pool, pipe = Local(workers=4), Pipe()[0]
    worker: Any = lambda number: _Worker(number, Process(), pipe)  # type: ignore[arg-type]  # noqa: E731
    monkeypatch.setattr(pool, "_start", worker)
    unit = Unit((), (), "alone-0", Measure.latency, Load(1))
    workers = {number: worker(number) for number in (0, 2, 3)}  # 1 died
    chosen = [pool._idle(workers)]
    chosen[0].unit = unit
    chosen.append(pool._idle(workers))
    assert {w.number % 2 for w in chosen} == {0, 1}
    workers = {number: worker(number) for number in (0, 2)}  # 1 and 3 died
    workers[0].unit = unit
    assert pool._idle(workers).number == 1


def test_a_gpu_chosen_for_all_workers_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"model\.device=cuda:1: each worker .* sees one GPU"):
        run_points(configs("model.device=cuda:1"), Local(workers=2))
    Local(workers=2).check(plan(configs("model.device=cuda")))


@pytest.mark.parametrize("measures", [("quality", "latency"), ("latency", "quality"),
                                      ("both", "latency"), ("quality", "both")])  # fmt: skip
def test_a_point_asked_for_answers_and_for_latencies_gets_both(measures: tuple[str, ...]) -> None:
    (point,) = plan([c for m in measures for c in configs(f"measure={m}")])
    assert (point.wants_answers, point.wants_latency) == (True, True)
    assert len(point.latency_items) == 10


def test_latencies_of_a_point_are_measured_in_one_way() -> None:
    plan([*configs("measure=latency"), *configs("latency.repeats=5")])
    with pytest.raises(UserError, match=r"latency\.repeats=2,5: "):
        plan([*configs("measure=latency"), *configs("measure=both", "latency.repeats=5")])


class Halfway:
    """An engine whose first point fails after a few answers."""

    asked: list[str]

    def __init__(self, config: Config) -> None:
        pass

    def generate(self, work: Sequence[PointWork]) -> Iterator[Response | PointFailed]:
        Halfway.asked = [item.point.id for item in work]
        for n, item in enumerate(work):
            for request, _ in item.requests[: None if n else 3]:
                yield Response(request, "7", [7], "stop", budget_verified=True)
            if not n:
                yield PointFailed(item.point, "failed half-way")


def test_a_rate_counts_what_was_answered_and_failed_points_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("kvx.run.worker.engine_of", Halfway)
    monkeypatch.setattr(journal, "RATED_REQUESTS", 1)
    both = [*configs(), *configs("budget=0.2")]
    first, second = plan(both)
    for point in (first, second):
        PointStore(point).recover()
    unit = Unit(tuple(both), tuple(e.example_id for e in first.manifest.entries), "s001of001-0",
                Measure.quality, Load(20))  # fmt: skip
    outcome = run_unit(unit, Meter([unit], show=False))
    assert outcome.failed == {first.id: "failed half-way"}
    (rate,) = journal._rates(experiment_dir(both[0]))
    assert rate.requests == 3 + 10
    tokens = [e.prompt_tokens for e in first.manifest.entries]
    assert rate.prompt_tokens == sum(tokens) + sum(tokens[:3])
    run_unit(unit, Meter([unit], show=False))
    assert first.id not in Halfway.asked
    assert is_done(second)


def test_a_worker_tells_what_it_is_doing_and_then_how_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ACTIVITY, "EVERY_S", 0.0)
    asked = configs()
    (point,) = plan(asked)
    PointStore(point).recover()
    names = tuple(e.example_id for e in point.manifest.entries)
    unit = Unit(tuple(asked), names, "s001of001-0", Measure.quality, Load(len(names)))
    here, there = Pipe()
    here.send(unit)
    here.send(None)
    worker = Thread(target=serve, args=(there,))
    worker.start()
    messages = []
    while not messages or not isinstance(messages[-1], Outcome):
        messages.append(here.recv())
    worker.join()
    assert messages[-1].failed == {}
    assert messages.count(point.id) == len(names)
    seen = [m for m in messages if isinstance(m, Seen)]
    assert any(m.doing.startswith("prefill of ") for m in seen)
    assert any(m.doing.startswith("decoding ") for m in seen)
    assert seen[-1].doing == ""
    assert seen[-1].begun - seen[0].begun in (len(names) - 1, len(names))
    first = messages.index(point.id)  # before the first request is finished there is much to tell
    assert sum(isinstance(m, Seen) for m in messages[:first]) > 2
    assert ACTIVITY.listener is None
    here.close()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("slurmstepd-n1: error: StepId=11.0 exceeded memory limit (2 > 1), being killed",
         "out of memory; more with hydra.launcher.mem_gb="),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.batch. Some of your "
         "processes may have been killed by the cgroup out-of-memory handler.",
         "out of memory; more with hydra.launcher.mem_gb="),
        ("slurmstepd-n2: error: *** JOB 31 ON n2 CANCELLED AT 2026-11-22T02:12:05 DUE TO TIME "
         "LIMIT ***", "over its time limit; more with hydra.launcher.timeout_min="),
        ("slurmstepd-n1: error: *** STEP 5.0 ON n1 CANCELLED AT 2026-11-22T01:49:03 ***", None),
        ("run: point x failed: CUDA out of memory", None),
    ],
)  # fmt: skip
def test_slurms_own_words_in_a_log_say_why_it_ended_a_job(
    tmp_path: Path, line: str, reason: str | None
) -> None:
    (tmp_path / "log").write_text("x" * 20_000 + f"\n{line}\nsrun: Force Terminated\n")
    assert _ending(tmp_path / "log") == reason
    assert _ending(tmp_path / "none") is None


def test_a_job_that_would_stop_before_it_works_is_refused() -> None:
    with pytest.raises(UserError, match=r"timeout_min=2: a job stops 120 s before its end"):
        Slurm(slices=2, wait=True, **(SETTINGS | {"timeout_min": 2}))


def test_the_queue_in_words() -> None:
    states = {"7_0": "PENDING (Resources)", "7_1": "RUNNING", "7_2": "RUNNING"}
    assert slurm_jobs.in_words(states) == ["2 running", "1 pending (Resources)"]


def test_a_lost_job_is_named_by_a_slice_it_did_not_finish(tmp_path: Path) -> None:
    """Its slices of other models may all be there."""
    copy = tmp_path / "copy"
    shutil.copytree(package_dir() / "assets" / "tiny_recall", copy)
    (copy / "generation_config.json").write_text('{"eos_token_id": 3, "max_length": 99}')
    asked = [*configs(), *configs("model=hf", f"model.path={copy}", "model.dtype=float32")]

    class LosesTheSecond(Idle):
        def run(self, units: Sequence[Unit]) -> list[Outcome]:
            for unit in units:
                if unit.model == "tiny_recall":
                    run_unit(unit, Meter([unit], show=False))
            return [Outcome(unit, lost="its job died") for unit in units]

    with pytest.raises(RunFailedError, match=r"1 of 2 points.*of model .*/copy: its job died"):
        run_points(asked, LosesTheSecond())
