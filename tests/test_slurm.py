"""hydra/launcher=kvx_slurm on a real SLURM: jobs that die, requeue or are left alone lose nothing.

`scripts/slurm_testbed.sh` starts a cluster of two nodes with two (fake) GPUs each on this machine.
With KVX_REQUIRE_SLURM=1 these tests fail where it cannot be had, instead of being skipped.
"""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from kvx.config.folders import package_dir
from kvx.run import slurm_jobs
from tests.conftest import Kvx, finish, kvx_process, request_rows
from tests.waiting import HANGS_S, Gate, wait_until

pytestmark = pytest.mark.slurm
TESTBED = package_dir().parent / "scripts" / "slurm_testbed.sh"
DATA = ("dataset.source.n_examples=60", "dataset.sampling.n_per_bin=4", "run.shard_requests=2")
SLURM = ("hydra/launcher=kvx_slurm", "hydra.launcher.slices=3", "hydra.launcher.cpus_per_task=1")
SLOW = ("-m", "press=knorm", "press.method._target_=tests.presses.SlowPress",
        "budget=0.8,0.4", "engine.max_rows=2", *DATA)  # fmt: skip
RUNS = Path("outputs/runs/default")
MAX_ARRAY = 2  # jobs in one array of this cluster


def reason_to_skip() -> str | None:
    if os.geteuid() != 0:
        return "starting SLURM's daemons needs root"
    missing = [n for n in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(n) is None]
    return f"no {missing[0]} here; run scripts/install_slurm.sh" if missing else None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Path of a running cluster's slurm.conf."""
    if reason := reason_to_skip():
        if os.environ.get("KVX_REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    environment = os.environ | {"KVX_TESTBED_MAX_ARRAY": str(MAX_ARRAY)}
    command = [str(TESTBED), "start", str(folder)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=HANGS_S)
    yield str(folder / "slurm.conf")
    subprocess.run([str(TESTBED), "stop", str(folder)], check=True, timeout=HANGS_S)


@pytest.fixture(autouse=True)
def on_the_cluster(cluster: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SLURM_CONF", cluster)
    monkeypatch.setenv("PYTHONPATH", str(package_dir().parent))
    yield
    subprocess.run(["scancel", "--me"], check=True)
    wait_until(lambda: not queue(), "the queue is empty")


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Holds the jobs of the slow sweep; they inherit the environment."""
    found = Gate(tmp_path)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    return found


def queue() -> list[str]:
    listed = subprocess.run(
        ["squeue", "--me", "-h", "-r", "-o", "%i"], capture_output=True, text=True
    )
    return listed.stdout.split()


def jobs() -> list[str]:
    """Those in the queue, in the order of their slices."""
    return sorted(queue(), key=lambda job: [int(number) for number in job.split("_")])


def wrote(writer: str) -> bool:
    return any(RUNS.glob(f"points/*/requests-{writer}-*.parquet"))


def logs() -> str:
    return "".join(p.read_text() for p in Path("multirun").rglob("*_log.err"))


def pids_of(job: str) -> list[int]:
    """Worker processes of array element `job`."""
    found = []
    number, _, element = job.partition("_")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        of = {"CONF": os.environ["SLURM_CONF"], "ARRAY_JOB_ID": number, "ARRAY_TASK_ID": element}
        ours = {f"SLURM_{name}={value}".encode() for name, value in of.items()}
        python = b"python" in command.split(b"\0")[0] and b"submitit.core._submit" in command
        if python and ours <= set(environment):
            found.append(int(process.name))
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The rows of the slow sweep, made by one process that nobody bothers."""
    from kvx.cli.command import run_stage

    folder = tmp_path_factory.mktemp("undisturbed")
    assert run_stage("run", [*SLOW, f"paths.output={folder}", f"paths.multirun={folder}"]) == 0
    return request_rows(folder / "runs" / "default")


def test_three_jobs_share_a_sweep_over_two_models_each_loaded_once_by_each(kvx: Kvx) -> None:
    """In as many arrays as the cluster asks for: this one takes two jobs in each."""
    shutil.copytree(package_dir() / "assets" / "tiny_recall", "copy")
    (Path("copy") / "generation_config.json").write_text('{"eos_token_id": 3, "max_length": 99}')
    models = (
        "model=hf",
        f"model.path={package_dir()}/assets/tiny_recall,{Path('copy').absolute()}",
    )
    arguments = ("-m", "press=knorm", "budget=1.0,0.5", *models, "model.dtype=float32", *DATA)
    outcome = kvx("run", *arguments, *SLURM)
    assert outcome.code == 0, outcome.err
    assert re.search(r"3 jobs submitted to SLURM as \d+, \d+; watch with", outcome.err)
    assert "python -m kvx.status experiment_name=default" in outcome.err
    assert logs().count("loading model") == 6
    assert "loading model" not in outcome.err
    rows = request_rows(RUNS)
    assert kvx("run", *arguments, "paths.output=alone").code == 0
    pd.testing.assert_frame_equal(rows, request_rows(Path("alone/runs/default")))


def test_jobs_cancelled_or_killed_lose_their_slices_and_those_queued_again_go_on(
    kvx: Kvx, tmp_path: Path, undisturbed: pd.DataFrame, gate: Gate
) -> None:
    """Of three jobs: one cancelled, one killed, one out of time and then pre-empted."""
    # so short that SLURM's signal always counts as that of the time limit
    limits = ("hydra.launcher.timeout_min=10", "hydra.launcher.signal_delay_s=1")
    command = (*SLOW, *SLURM, *limits)
    gate.allow_each(14)  # of 24 or more: enough for a first shard, and no job can end
    process = kvx_process(tmp_path, "run", *command)
    all_three = lambda: all(wrote(f"s00{n}of003") for n in (1, 2, 3))  # noqa: E731
    wait_until(all_three, "three jobs work", process)
    cancelled, killed, queued_again = jobs()
    subprocess.run(["scancel", cancelled], check=True)
    for pid in pids_of(killed):
        os.kill(pid, signal.SIGKILL)
    gate.allow_each(2)  # from here on, in each that starts
    before = gate.calls
    # what SLURM sends when the time limit comes near
    subprocess.run(["scancel", "--signal=USR2", queued_again], check=True)
    wait_until(lambda: "this job is timed-out" in logs(), "the third job is out of time", process)
    wait_until(lambda: gate.calls > before, "it works again", process)
    preempting = ["sbatch", "-p", "high", "-N2", "--exclusive", "--mem=0", "--wrap=sleep 1"]
    subprocess.run(preempting, check=True, stdout=subprocess.DEVNULL, cwd=tmp_path)
    wait_until(lambda: "DUE TO PREEMPTION" in logs(), "it is pre-empted", process)
    gate.open()
    outcome = finish(process)
    assert outcome.code == 1, outcome.err
    assert "2 of 2 points incomplete; slice s001of003" in outcome.err.splitlines()[-1]
    assert "type the same command again" in outcome.err.splitlines()[-1]
    assert f"SLURM job {cancelled} ended early" in outcome.err
    assert f"SLURM job {killed} ended early" in outcome.err
    assert f"SLURM job {queued_again} ended early" not in outcome.err
    assert "this job was ended from outside; what it has answered is written" in logs()
    assert "Traceback" not in logs()
    third = [pq.read_metadata(p).num_rows for p in RUNS.glob("points/*/requests-s003of003-*")]
    assert sum(third) == 2 * 6  # all of its slice, at two budgets
    assert kvx("run", *command).code == 0
    pd.testing.assert_frame_equal(request_rows(RUNS), undisturbed)


def test_a_job_over_its_memory_is_named_and_more_memory_completes_the_sweep(
    kvx: Kvx, undisturbed: pd.DataFrame
) -> None:
    """The second time submitted and left alone."""
    one = ("hydra.launcher.slices=1",)
    little = kvx("run", *SLOW, *SLURM, *one, "+hydra.launcher.additional_parameters.mem=150M")
    assert little.code == 1, little.err
    assert "2 of 2 points incomplete; slice s001of001" in little.err.splitlines()[-1]
    assert "out of memory; more with hydra.launcher.mem_gb=" in little.err.splitlines()[-1]
    leave = ("hydra.launcher.mem_gb=2", "hydra.launcher.wait=false")
    left = kvx("all", *SLOW, *SLURM, *one, *leave)
    assert left.code == 0, left.err
    said = re.search(r"1 job submitted to SLURM as (\d+); watch with", left.err)
    assert said, left.err
    assert {job.partition("_")[0] for job in queue()} == {said[1]}
    wait_until(lambda: not queue(), "the job has ended")
    after = kvx("all", *SLOW)
    assert after.code == 0
    assert "nothing to do" in after.err
    assert (RUNS / "report.md").exists()
    pd.testing.assert_frame_equal(request_rows(RUNS), undisturbed)


def test_an_interrupted_parent_leaves_its_jobs_and_nobody_doubles_their_work(
    kvx: Kvx, tmp_path: Path, undisturbed: pd.DataFrame, gate: Gate
) -> None:
    process = kvx_process(tmp_path, "run", *SLOW, *SLURM, "hydra.launcher.slices=2")
    wait_until(lambda: slurm_jobs.read(RUNS) and queue(), "jobs are submitted", process)
    array = jobs()[0].partition("_")[0]
    while_it_waits = kvx("run", *SLOW, *SLURM)
    assert while_it_waits.code == 2
    assert f"SLURM job {array} still wait" in while_it_waits.err.splitlines()[-1]
    process.send_signal(signal.SIGINT)
    interrupted = finish(process)
    assert interrupted.code == 130, interrupted.err
    assert f"SLURM goes on with {array}" in interrupted.err.splitlines()[-1]
    status = kvx_process(tmp_path, "status")
    looked, _ = status.communicate(timeout=HANGS_S)
    assert status.returncode == 3
    assert re.search(rf"SLURM job {array}: \d (running|pending)", looked)
    assert "missing" not in looked
    while_they_go_on = kvx("run", *SLOW)
    assert while_they_go_on.code == 2
    assert f"scancel {array}" in while_they_go_on.err.splitlines()[-1]
    gate.open()
    wait_until(lambda: not queue(), "the jobs have ended")
    again = kvx("run", *SLOW, *SLURM)
    assert again.code == 0
    assert "all 2 points are complete (40 requests); nothing to do" in again.err
    pd.testing.assert_frame_equal(request_rows(RUNS), undisturbed)


def test_a_point_that_raises_and_a_wrong_field_of_the_launcher(kvx: Kvx) -> None:
    target = "press.method._target_=tests.test_engine.HalfHeartedPress,kvpress.KnormPress"
    outcome = kvx(
        "run", "-m", "press=knorm", "budget=0.5", target, *DATA, *SLURM, "hydra.launcher.slices=2"
    )
    assert outcome.code == 1
    assert "1 of 2 points failed, the others are complete" in outcome.err.splitlines()[-1]
    refused = kvx("run", "seed=5", *DATA, *SLURM, "hydra.launcher.partition=nosuch")
    assert refused.code == 2
    said = refused.err.splitlines()[-1]
    assert "sbatch: invalid partition specified: nosuch; asked for partition=nosuch gpus" in said
    assert refused.err.count("invalid partition") == 1
    refused = kvx("run", "seed=5", *DATA, *SLURM, "hydra.launcher.gres=tpu:1")
    assert refused.code == 2
    assert "asked for gres=tpu:1" in refused.err.splitlines()[-1]
    refused = kvx("run", "seed=5", *DATA, *SLURM, "hydra.launcher.nodes=2")
    assert "hydra.launcher.nodes=2: a job is one worker" in refused.err.splitlines()[-1]


def test_as_many_slices_as_there_are_gpus(cluster: str) -> None:
    from kvx.run.pools.slurm import max_array_size, room

    settings = {"partition": None, "gres": None, "gpus_per_node": 1, "gpus_per_task": None,
                "cpus_per_task": None}  # fmt: skip
    assert room(settings) == 4
    assert room(settings | {"gres": "gpu:2"}) == 2
    assert room(settings | {"partition": "high", "gpus_per_node": None}) == 8
    assert max_array_size() == MAX_ARRAY
