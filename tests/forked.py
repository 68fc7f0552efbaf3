"""Stages in processes of their own that find torch imported: as real to kill, and soon at work."""

import os
import subprocess
import sys
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.conftest", "tests.presses", "kvx.engines.kvpress.engine"])


class Forked:
    """`python -m kvx.<stage>` in the current directory and environment; what it says is in `log`.

    Has what `tests.waiting.wait_until` asks of a process.
    """

    def __init__(self, log: Path, stage: str, *arguments: str) -> None:
        self.log = log
        self._process = _FORKS.Process(
            target=_main, args=(log, dict(os.environ), stage, arguments), daemon=True
        )
        self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def communicate(self) -> tuple[str, str]:
        self._process.join()
        return "", self.log.read_text()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.join()


def _main(log: Path, environment: dict[str, str], stage: str, arguments: tuple[str, ...]) -> None:
    from kvx.cli.command import run_stage

    os.environ.clear()
    os.environ.update(environment)
    with log.open("w") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.exit(run_stage(stage, list(arguments)))


class ForkedWorker:
    """`kvx.run.pools.local.start_worker` without the seconds that importing torch takes.

    The process is as real, and what is killed of it as lost; only its interpreter is not fresh. It
    has what a pool asks of a `subprocess.Popen`, and says what it says where this process does.
    """

    def __init__(self, connection: Connection, environment: dict[str, str]) -> None:
        self._process = _FORKS.Process(
            target=_work, args=(connection, environment, _Output()), daemon=True
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class _Output:
    """Standard output and error of this process, for one that is started with it."""

    def __getstate__(self) -> dict[str, Any]:
        return {"streams": [(number, DupFd(number)) for number in (1, 2)]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for number, stream in state["streams"]:
            os.dup2(stream.detach(), number)


def _work(connection: Connection, environment: dict[str, str], _output: _Output) -> None:
    from kvx.run import worker

    os.setpgid(0, 0)
    os.environ.clear()
    os.environ.update(environment)
    os._exit(worker.main([str(connection.fileno())]))
