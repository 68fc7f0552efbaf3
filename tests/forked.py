"""Stages in processes of their own that find torch imported: as real to kill, and soon at work."""

import os
import sys
from multiprocessing import get_context
from pathlib import Path

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
