"""hydra/launcher=kvx_slurm: jobs of SLURM arrays, each with its slice of the examples.

Array element k takes slice k of every model and manifest, one model after the other. Latencies
follow in their own jobs when all answers are there. What is done is decided from our own files.
SLURM is asked by `squeue` only, because submitit's results and states need accounting (`sacct`).
"""

import contextlib
import io
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from kvx.config.measures import Measure
from kvx.engines.openai import checks
from kvx.errors import Submitted, UserError
from kvx.points import Point, by_experiment, experiment_dir
from kvx.run import slurm_jobs
from kvx.run.progress import Meter
from kvx.run.units import Outcome, Unit

log = logging.getLogger(__name__)
# known to submitit by these names, everything else with `slurm_` in front
PLAIN = ("timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes",
         "name", "stderr_to_stdout")  # fmt: skip
PAUSE_S = (0.5, 15.0)  # between two looks at the queue: at first, at most
# states of nodes that start no jobs, and the mark of nodes that do not respond
OUT_OF_SERVICE = re.compile(r"down|drain|drng|fail|futr|inval|maint|unk|.*\*")
SETTLE_S = 5.0  # until files of jobs that left the queue are seen here
SAY_EVERY_S = 10.0  # at most, where only the queue's reasons change
# settings that sbatch may refuse
ASKED = ("partition", "account", "qos", "constraint", "gres", "gpus_per_node", "gpus_per_task",
         "cpus_per_task", "mem_gb", "timeout_min", "additional_parameters")  # fmt: skip
# what SLURM's daemons write into a job's log when they end it, and what to do about it
ENDINGS = (
    (r"exceeded (?:job )?memory limit|oom.?kill|out.of.memory",
     "out of memory; more with hydra.launcher.mem_gb="),
    (r"DUE TO TIME LIMIT", "over its time limit; more with hydra.launcher.timeout_min="),
    (r"DUE TO PREEMPTION", "pre-empted"),
    (r"DUE TO NODE FAILURE", "its node failed"),
)  # fmt: skip
INTERRUPTED = 130
Work = tuple[Unit, ...]


class SlurmWorker:
    """What an array element runs."""

    def __call__(self, units: Work) -> list[Outcome]:
        from submitit.core.job_environment import JobEnvironment
        from submitit.core.utils import UncompletedJobError

        from kvx.run.worker import attempt, log_to_stderr

        if cores := os.environ.get("SLURM_CPUS_PER_TASK"):
            os.environ.setdefault("OMP_NUM_THREADS", cores)
        # cancelled or pre-empted: write what there is in the seconds before SIGKILL
        ending = signal.Signals["SIG" + JobEnvironment.USR_SIG]
        requeue = signal.getsignal(ending)
        signal.signal(signal.SIGTERM, _end_once)
        if callable(requeue):
            signal.signal(ending, partial(_requeue_or_interrupt, requeue))
        log_to_stderr()
        try:
            return [_metered(unit, attempt) for unit in units]
        except KeyboardInterrupt as error:
            if isinstance(error.__cause__, UncompletedJobError):  # submitit writes down why
                raise error.__cause__ from None
            log.error("run: this job was ended from outside; what it has answered is written")
            raise SystemExit(INTERRUPTED) from None
        finally:
            _ignore_sigterm()  # it ends by itself now

    def checkpoint(self, units: Work) -> Any:
        """Out of time: submitit queues the same work again, which finds what is done."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, units)


def _metered(unit: Unit, attempt: Callable[[Unit, Meter], Outcome]) -> Outcome:
    with Meter([unit], show=False) as meter:
        return attempt(unit, meter)


def _end_once(*_: object) -> None:
    """End, but write what there is; SLURM may ask again while that goes on."""
    _ignore_sigterm()
    raise KeyboardInterrupt


def _ignore_sigterm() -> None:
    """A signal while Python ends would be a traceback in the job's log; SIGKILL follows anyway."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _requeue_or_interrupt(requeue: Callable[..., Any], *signalled: Any) -> None:
    """Run submitit's handler; if it gives up, its exception must not look like the engine's."""
    from submitit.core.utils import UncompletedJobError

    _ignore_sigterm()  # a job that is queued again gets one too
    try:
        requeue(*signalled)
    except UncompletedJobError as error:
        raise KeyboardInterrupt(str(error)) from error


class Slurm:
    """`settings` are those of submitit's SLURM launcher."""

    def __init__(self, slices: int | None, wait: bool, **settings: Any) -> None:
        for name in ("nodes", "tasks_per_node"):
            if settings[name] != 1:
                raise UserError(
                    f"hydra.launcher.{name}={settings[name]}: a job is one worker; for more, set "
                    "hydra.launcher.slices"
                )
        if slices is not None and slices < 1:
            raise UserError(f"hydra.launcher.slices={slices}: must be at least 1")
        minutes, delay_s = settings["timeout_min"], settings["signal_delay_s"]
        if minutes * 60 <= delay_s:
            raise UserError(
                f"hydra.launcher.timeout_min={minutes}: a job stops {delay_s} s before its end, so "
                "it would never work; raise it, or lower hydra.launcher.signal_delay_s"
            )
        self.n_slices, self.wait, self.settings = slices, wait, settings
        self.folder = Path(settings["submitit_folder"]).absolute()
        self.points: list[Point] = []

    def check(self, points: Sequence[Point]) -> None:
        """The workers check the points: a login node loads no model."""
        checks.refuse_workers(points)
        needed = ("sbatch", "squeue") if self.n_slices else ("sbatch", "squeue", "sinfo")
        if missing := [name for name in needed if shutil.which(name) is None]:
            raise UserError(
                f"hydra/launcher=kvx_slurm: there is no {missing[0]} here; "
                "run the command on a machine of the cluster"
            )

    def slices(self, points: Sequence[Point]) -> int:
        self.points = list(points)
        parallel = int(self.settings["array_parallelism"])
        return self.n_slices or max(1, min(room(self.settings), parallel))

    def run(self, units: Sequence[Unit]) -> list[Outcome]:
        by_slice: dict[str, list[Unit]] = {}
        for unit in units:
            if unit.measure is not Measure.latency:
                by_slice.setdefault(unit.slice.partition("of")[0], []).append(unit)
        submitted = self._submit([tuple(same) for same in by_slice.values()])
        alone = [(unit,) for unit in units if unit.measure is Measure.latency]
        if alone:
            submitted += self._submit(alone, after=_ids(submitted), alone=True)
        where = ", ".join(_ids(submitted))
        self._say_where(len(submitted), where)
        try:
            _wait([job for job, _ in submitted])
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; SLURM goes on with {where}; when its jobs have ended, type the same "
                f"command again, or end them with: scancel {where.replace(',', '')}"
            ) from None
        return [outcome for job, work in submitted for outcome in _outcomes(job, work)]

    def _submit(
        self, work: Sequence[Work], after: Sequence[str] = (), alone: bool = False
    ) -> list[tuple[Any, Work]]:
        """Submit arrays and record their ids; returns jobs with what each of them works on.

        They start when the jobs `after` have ended. `alone`: nothing else may slow them down.
        """
        import submitit

        settings = {k: v for k, v in self.settings.items() if k != "submitit_folder"}
        turns = settings.pop("max_num_timeout")
        executor = submitit.AutoExecutor(self.folder, cluster="slurm", slurm_max_num_timeout=turns)
        if after:
            settings["dependency"] = "afterany:" + ":".join(after)
        if alone and not gpus_of(settings):  # a GPU of its own is alone enough, cores are not
            settings |= {"array_parallelism": 1, "exclusive": True}
        found: list[tuple[Any, Work]] = []
        most = max_array_size()
        try:
            executor.update_parameters(
                **{k if k in PLAIN else f"slurm_{k}": v for k, v in settings.items()}
            )
            for start in range(0, len(work), most):
                part = work[start : start + most]
                with contextlib.redirect_stderr(io.StringIO()):  # submitit prints what it raises
                    found += zip(executor.map_array(SlurmWorker(), part), part, strict=True)
                self._remember(_ids(found[start:]))
        except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError) as error:
            raise UserError(f"hydra/launcher=kvx_slurm: {self._refusal(str(error))}") from None
        return found

    def _refusal(self, said: str) -> str:
        """sbatch's first reason, and what it was asked for."""
        reasons = re.findall(r"sbatch: error: (?:Batch job submission failed: )?(.+)", said)
        asked = [f"{k}={self.settings[k]}" for k in ASKED if self.settings.get(k)]
        return (
            f"sbatch: {reasons[0] if reasons else said.strip()}; asked for {' '.join(asked)}; "
            "`sinfo -o '%P %l %c %m %G %f'` shows what there is"
        )

    def _remember(self, job_ids: list[str]) -> None:
        logs = str(self.folder).replace("%j", "*")
        at = datetime.now(UTC).isoformat(timespec="seconds")
        for folder, points in by_experiment(self.points).items():
            ids = [point.id for point in points]
            slurm_jobs.remember(folder, slurm_jobs.Submission(job_ids, ids, logs, at))

    def _say_where(self, n: int, where: str) -> None:
        config = self.points[0].config
        arguments = f"experiment_name={config.experiment_name}"
        if config.paths.output != "outputs":
            arguments += f" paths.output={config.paths.output}"
        said = f"{n} {'jobs' if n > 1 else 'job'} submitted to SLURM as {where}"
        watch = f"watch with: python -m kvx.status {arguments}"
        if not self.wait:
            raise Submitted(f"{said}; {watch}; type the same command again when they have ended")
        log.info("run: %s; %s → %s", said, watch, experiment_dir(config))


def _ids(submitted: Sequence[tuple[Any, Work]]) -> list[str]:
    """The ids of jobs and arrays, each once."""
    return list(dict.fromkeys(str(job.job_id).partition("_")[0] for job, _ in submitted))


def _wait(submitted: Sequence[Any]) -> None:
    """Wait until every job has left a result or the queue."""
    pause_s, settled_at = PAUSE_S[0], None
    said, said_at, before = "", time.monotonic(), 0
    while True:
        left = [job for job in submitted if not job.paths.result_pickle.exists()]
        ended = len(submitted) - len(left)
        active = slurm_jobs.active_jobs(job.job_id for job in left) if left else {}
        listed = active or {}
        queue = {job.job_id: listed[job.job_id] for job in left if job.job_id in listed}
        says = ", ".join((f"{ended} of {len(submitted)} jobs ended", *slurm_jobs.in_words(queue)))
        waited = time.monotonic() - said_at >= SAY_EVERY_S
        if ended != before or (queue and says != said and waited):
            said, said_at, before = says, time.monotonic(), ended
            log.info("run: %s", says)
        if not left:
            return
        if active is None or any(job.job_id in active for job in left):
            settled_at = None
        else:
            settled_at = settled_at or time.monotonic()
            if time.monotonic() - settled_at > SETTLE_S:
                return
        time.sleep(pause_s if settled_at is None else PAUSE_S[0])
        pause_s = min(pause_s * 1.2, PAUSE_S[1])


def _outcomes(job: Any, work: Work) -> list[Outcome]:
    """What a job says of its units, or that it was lost."""
    try:
        written = job.paths.result_pickle.read_bytes()
        kind, result = pickle.loads(written)  # noqa: S301  our own job wrote it
    except (OSError, EOFError, pickle.UnpicklingError):
        kind, result = "lost", _state(job.job_id)
    if kind == "success":
        outcomes: list[Outcome] = result
        return outcomes
    reason = _ending(job.paths.stderr) or str(result).strip().splitlines()[-1]
    lost = f"SLURM job {job.job_id} ended early ({reason}; log: {job.paths.stderr})"
    log.error("run: %s", lost)
    return [Outcome(unit, lost=lost) for unit in work]


def _ending(job_log: Path) -> str | None:
    """Why SLURM's daemons ended a job, from what they wrote at the end of its log."""
    try:
        tail = job_log.read_bytes()[-10_000:].decode(errors="replace")
    except OSError:
        return None
    lines = [line for line in tail.splitlines() if line.startswith(("slurmstepd", "srun"))]
    for pattern, meaning in ENDINGS:
        if any(re.search(pattern, line, re.IGNORECASE) for line in lines):
            return meaning
    return None


def _state(job_id: str) -> str:
    """SLURM's word for how a job ended, as long as it remembers."""
    said = slurm_jobs.ask_slurm("squeue", "-h", "-r", "-t", "all", "-j", job_id, "-o", "%T")
    return (said or "").strip() or "no result"


def room(settings: dict[str, Any]) -> int:
    """How many jobs of these settings fit at once into the partitions they go to.

    Busy nodes count, nodes that take no jobs do not. Raises `UserError` without `sinfo`.
    """
    listed = slurm_jobs.ask_slurm("sinfo", "-h", "-N", "-o", "%P|%N|%c|%t|%G")
    if listed is None:
        raise UserError(
            "hydra/launcher=kvx_slurm: no sinfo here tells how many jobs fit; set "
            "hydra.launcher.slices"
        )
    asked = settings["partition"].split(",") if settings["partition"] else None
    nodes = {}
    for line in listed.split():
        partition, node, cores, state, gres = line.split("|", 4)
        if OUT_OF_SERVICE.match(state):
            continue
        if partition.rstrip("*") in asked if asked else partition.endswith("*"):
            nodes[node] = (int(cores), sum(map(int, re.findall(r"gpu(?::[^:,(]+)?:(\d+)", gres))))
    wanted = gpus_of(settings)
    if wanted:
        return sum(gpus // wanted for _, gpus in nodes.values())
    return sum(cores // (settings["cpus_per_task"] or 1) for cores, _ in nodes.values())


def gpus_of(settings: dict[str, Any]) -> int:
    """GPUs that each job asks for, whichever field says so."""
    found = 0
    for asked in (settings["gres"] or "").split(","):
        kind, *rest = asked.removeprefix("gres").lstrip(":/").split(":")  # gpu[:type][:count]
        if kind == "gpu":
            found += int(rest[-1]) if rest and rest[-1].isdigit() else 1
    if found:
        return found
    return int(settings["gpus_per_node"] or settings["gpus_per_task"] or 0)


def max_array_size() -> int:
    """SLURM's limit on the elements of one array, or its default if it does not say."""
    shown = slurm_jobs.ask_slurm("scontrol", "show", "config") or ""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", shown)
    return max(1, int(found[1]) if found else 1001)
