"""Shared helpers: the command line in this process (fast) or in a new one (real)."""

import logging
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from kvx.cli.command import run_stage
from kvx.config.folders import cache_dir
from kvx.store import layout
from tests.waiting import HANGS_S

# how long an example takes says what else the machine does
settings.register_profile("kvx", deadline=None)
settings.load_profile("kvx")

SMOLLM2 = cache_dir() / "models" / "smollm2-135m-instruct" / "kvx_asset.json"
# Files that take longest, longest first: two workers then end at about the same time, since what is
# left at the end are short ones (`make test` keeps this order). pytest --durations=40 shows who is.
LONGEST = (
    "slurm", "local", "run", "serve", "engine", "openai_run", "shared_run", "serve_start",
    "pipeline", "live_rules", "plan_status", "guard_stats", "certify", "certify_serve", "train",
    "simulate", "wheel", "serve_input", "guard_live", "serve_guard", "catastrophes",
)  # fmt: skip
# measured, so different in every run
VARYING = (
    "finished_at",
    "ttft_s",
    "tpot_s",
    "latency_s",
    "prefill_s",
    "decode_s",
    "peak_memory_bytes",
    "made_with",
)


@dataclass(frozen=True)
class Outcome:
    code: int
    err: str


Kvx = Callable[..., Outcome]


@pytest.fixture
def kvx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Kvx]:
    """`kvx("run", "budget=0.5")` in an empty directory; exit code and what was said on stderr."""
    monkeypatch.chdir(tmp_path)

    def call(stage: str, *arguments: str) -> Outcome:
        capfd.readouterr()
        code = run_stage(stage, list(arguments))
        return Outcome(code, capfd.readouterr().err)

    yield call
    logging.getLogger().handlers.clear()


def kvx_process(cwd: Path, stage: str, *arguments: str) -> subprocess.Popen[str]:
    """The stage as a user starts it, in a process of its own.

    Ctrl-C works in it even if these tests run as a background job, which shells start with SIGINT
    ignored.
    """
    return subprocess.Popen(
        [sys.executable, "-m", f"kvx.{stage}", *arguments],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    _, err = process.communicate(timeout=HANGS_S)
    return Outcome(process.returncode, err)


def request_rows(experiment: Path) -> pd.DataFrame:
    """All requests of an experiment without what varies from run to run, sorted."""
    files = [f for p in sorted(experiment.glob("points/*")) for f in layout.files(p, "requests")]
    frame = pd.concat([pq.read_table(f).to_pandas() for f in files], ignore_index=True)
    frame = frame.drop(columns=list(VARYING)).sort_values("request_id", ignore_index=True)
    frame["token_ids"] = [None if ids is None else list(ids) for ids in frame["token_ids"]]
    return frame


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    _longest_files_first(items)
    if SMOLLM2.is_file():
        return
    skip = pytest.mark.skip(reason="SmolLM2 is not in the asset cache; run `make assets`")
    for item in items:
        if "smollm2" in item.keywords:
            item.add_marker(skip)


def _longest_files_first(items: list[pytest.Item]) -> None:
    """`LONGEST`, then the others by their number of tests; the order within a file stays."""
    place = {f"test_{name}.py": n for n, name in enumerate(LONGEST)}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda i: (place.get(i.path.name, len(place)), -tests[i.path], str(i.path)))
