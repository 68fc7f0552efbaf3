"""hydra/launcher=kvx_local: worker processes of this machine, one per GPU or as many as asked for.

A worker that dies loses at most what it had not yet written of its slice. A new one takes its place
while there are slices left.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from kvx.config.measures import Measure
from kvx.config.schema import SHARING, SHARING_GPU
from kvx.engines.activity import Seen
from kvx.engines.openai import checks
from kvx.errors import UserError
from kvx.identity.provenance import usable_cores
from kvx.points import Point
from kvx.run.progress import Meter
from kvx.run.units import Outcome, Unit

log = logging.getLogger(__name__)
SLICES_PER_WORKER = 2  # shortens the wait for the last worker and what a dead one loses
CORES_PER_WORKER = 4
PATIENCE_S = 30.0  # for workers that were asked to end


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them; does not import torch."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu.strip() for gpu in visible.split(",") if gpu.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(i) for i, line in enumerate(listed.splitlines()) if line.startswith("GPU ")]


@dataclass
class _Worker:
    number: int
    process: subprocess.Popen[bytes]
    connection: Connection
    unit: Unit | None = None

    def __str__(self) -> str:
        return f"worker {self.number} (pid {self.process.pid})"


def start_worker(connection: Connection, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """A fresh interpreter at the other end: no lock, thread or CUDA context of ours."""
    return subprocess.Popen(
        [sys.executable, "-m", "kvx.run.worker", str(connection.fileno())],
        env=environment,
        pass_fds=[connection.fileno()],
        stdin=subprocess.DEVNULL,
        process_group=0,  # a terminal's Ctrl-C is ours to pass on, once
    )


class Local:
    def __init__(self, workers: int | None = None, slices: int | None = None) -> None:
        for name, value in (("workers", workers), ("slices", slices)):
            if value is not None and value < 1:
                raise UserError(f"hydra.launcher.{name}={value}: must be at least 1")
        self.gpus = visible_gpus()
        self.workers = workers or len(self.gpus) or max(1, usable_cores() // CORES_PER_WORKER)
        self.n_slices = slices or SLICES_PER_WORKER * self.workers

    def check(self, points: Sequence[Point]) -> None:
        """The workers check the rest: this process loads no model."""
        checks.refuse_workers(points)
        devices = sorted({p.config.model.device for p in points})
        chosen = [d for d in devices if d.startswith("cuda:") and d != "cuda:0"]
        if chosen:
            raise UserError(
                f"model.device={chosen[0]}: each worker of hydra/launcher=kvx_local sees one GPU "
                "of its own; set model.device=cuda, and CUDA_VISIBLE_DEVICES to the GPUs to use"
            )
        spread = [p for p in points if p.config.model.device_map is not None]
        if spread and len(self.gpus) > 1:
            raise UserError(
                f"model.device_map={spread[0].config.model.device_map}: each worker of "
                "hydra/launcher=kvx_local sees one GPU; leave hydra/launcher out to use several"
            )

    def slices(self, points: Sequence[Point]) -> int:
        return self.n_slices

    def run(self, units: Sequence[Unit]) -> list[Outcome]:
        answers = deque(u for u in units if u.measure is not Measure.latency)
        alone = deque(u for u in units if u.measure is Measure.latency)
        alone.reverse()  # the model that was loaded last comes first
        show = units[0].configs[0].run.progress
        workers: dict[int, _Worker] = {}
        try:
            with Meter(units, show, min(self.workers, len(answers) or 1)) as meter:
                done = self._run(answers, self.workers, workers, meter)
                # latencies do not disturb each other on GPUs of their own; on cores they do
                done += self._run(alone, min(len(self.gpus) or 1, self.workers), workers, meter)
        except BaseException:
            _end(workers.values(), interrupt=True)
            raise
        _end(workers.values(), interrupt=False)
        return done

    def _run(
        self, queue: deque[Unit], width: int, workers: dict[int, _Worker], meter: Meter
    ) -> list[Outcome]:
        """Hand out units to at most `width` workers until all have an outcome."""
        outcomes: list[Outcome] = []
        while queue or any(w.unit is not None for w in workers.values()):
            busy = [w for w in workers.values() if w.unit is not None]
            while queue and len(busy) < width:
                worker = self._idle(workers)
                worker.unit = queue.popleft()
                meter.begin(worker.unit)
                busy.append(worker)
                try:
                    worker.connection.send(worker.unit)
                except OSError:  # it died while idle; `_receive` notices
                    log.debug("%s does not listen", worker)
            for connection in wait([w.connection for w in busy]):
                worker = next(w for w in busy if w.connection is connection)
                outcome = _receive(worker, meter)
                if outcome is not None:
                    outcomes.append(outcome)
                    worker.unit = None
                    if outcome.lost is not None and worker.process.poll() is not None:
                        del workers[worker.number]
                        log.error("run: %s: %s", outcome.unit, outcome.lost)
        return outcomes

    def _idle(self, workers: dict[int, _Worker]) -> _Worker:
        """A worker without a unit, or a new one, on the GPU with the least work."""
        for worker in list(workers.values()):
            if worker.unit is None and worker.process.poll() is not None:
                worker.connection.close()
                del workers[worker.number]
        gpus = max(1, len(self.gpus))
        at_work = Counter(n % gpus for n, w in workers.items() if w.unit is not None)
        free = [n for n in range(self.workers) if n not in workers or workers[n].unit is None]
        number = min(free, key=lambda n: (at_work[n % gpus], n not in workers, n))
        if number not in workers:
            workers[number] = self._start(number)
        return workers[number]

    def _start(self, number: int) -> _Worker:
        """Start a fresh interpreter, which has no lock, thread or CUDA context of ours."""
        environment = self._environment(number)
        here, there = Pipe()
        with there:
            process = start_worker(there, environment)
        worker = _Worker(number, process, here)
        where = f" on GPU {environment['CUDA_VISIBLE_DEVICES']}" if self.gpus else ""
        log.info("run: %s started%s", worker, where)
        return worker

    def _environment(self, number: int) -> dict[str, str]:
        """A worker's GPU and cores, and how many workers share them."""
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p or os.curdir for p in sys.path)}
        environment[SHARING] = str(self.workers)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpu = self.gpus[number % len(self.gpus)]
            gpus = [self.gpus[n % len(self.gpus)] for n in range(self.workers)]
            environment[SHARING_GPU] = str(gpus.count(gpu))
        cores = max(1, usable_cores() // self.workers)
        environment.setdefault("OMP_NUM_THREADS", str(cores))
        return environment


def _receive(worker: _Worker, meter: Meter) -> Outcome | None:
    """The outcome of the worker's unit; None for mere progress."""
    assert worker.unit is not None
    try:
        message = worker.connection.recv()
    except (EOFError, OSError):
        worker.connection.close()
        meter.gone(worker.process.pid)
        code = worker.process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
        return Outcome(worker.unit, lost=f"{worker} {how}")
    if isinstance(message, Outcome):
        return message
    if isinstance(message, Seen):
        meter.heard(worker.process.pid, message)
    else:
        meter.advance(message)
    return None


def _end(workers: Iterable[_Worker], interrupt: bool) -> None:
    """End workers; those that are at work write what they have first."""
    for worker in workers:
        if interrupt:
            worker.process.send_signal(signal.SIGINT)
        else:
            try:
                worker.connection.send(None)
            except OSError:
                log.debug("%s is gone", worker)
    try:
        for worker in workers:
            worker.process.wait(PATIENCE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for worker in workers:
            worker.process.kill()
            worker.process.wait()
    for worker in workers:
        worker.connection.close()
