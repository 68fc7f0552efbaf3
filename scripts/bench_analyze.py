"""Seconds and memory to score, analyse and report a large experiment (`drawn_experiment.py`).

Every stage is a process of its own, started as a user starts it, and may fork others. Memory is the
largest sum of their shares (PSS: a page that several have counts once), looked at every 50 ms.

    python scripts/bench_analyze.py                            500 points of 2,000 requests
    python scripts/bench_analyze.py --seeds 1 --per-bin 4 DIR  100 points of 40, kept in DIR
    python scripts/bench_analyze.py --per-bin 2000 DIR         10 million requests
    python scripts/bench_analyze.py --write DIR                only write it; a second run measures
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from drawn_experiment import Size, write_points

from kvx.cli.command import run_stage

STAGES = ("score", "analyze", "report")
EVERY_S = 0.05  # between looks at a stage's memory


@dataclass(frozen=True)
class Cost:
    wall_s: float
    cpu_s: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"{self.wall_s:7.2f} s {self.cpu_s:7.2f} CPU s {self.peak_bytes / 2**20:7.0f} MiB"


def measure(folder: Path, *command: str) -> Cost:
    """Run `python -m command` in `folder`. Raises `CalledProcessError` if it fails."""
    before, begun, peak = os.times(), time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, *command], cwd=folder)
    root = psutil.Process(process.pid)
    while process.poll() is None:
        peak = max(peak, _resident(root))
        time.sleep(EVERY_S)
    took, after = time.perf_counter() - begun, os.times()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return Cost(took, cpu, peak)


def _resident(root: psutil.Process) -> int:
    """Bytes of memory that `root` and the processes under it have now."""
    total = 0
    try:
        for process in (root, *root.children(recursive=True)):
            rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            total += next(
                1024 * int(line.split()[1]) for line in rollup.splitlines() if line[:4] == "Pss:"
            )
    except (psutil.NoSuchProcess, OSError, StopIteration):
        return 0  # one has just ended
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", nargs="?", type=Path, help="kept if given")
    parser.add_argument("--seeds", type=int, default=5, help="100 points each")
    parser.add_argument("--bins", type=int, default=10)
    parser.add_argument("--per-bin", type=int, default=200, help="requests per bin")
    parser.add_argument("--clustered", action="store_true", help="graded, four to a cluster")
    parser.add_argument("--write", action="store_true", help="write the experiment and stop")
    parser.add_argument("--stages", default=",".join(STAGES), help="those to measure")
    options = parser.parse_args()
    folder = (options.dir or Path(tempfile.mkdtemp())).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    size = Size(options.seeds, options.bins, options.per_bin, options.clustered)
    arguments = size.arguments(folder)
    if not (folder / "outputs").exists():
        paths = [f"paths.output={folder / 'outputs'}", f"paths.multirun={folder / 'multirun'}"]
        begun = time.perf_counter()
        if run_stage("run", [*arguments, *paths], write_points):
            sys.exit(1)
        print(f"write {size.n_requests:,} requests: {time.perf_counter() - begun:.1f} s")
    if options.write:
        return
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(
        f"{size.n_requests:,} requests in {size.n_points} points; load before: {load}", flush=True
    )
    costs = []
    for stage in options.stages.split(","):
        costs.append(measure(folder, "-m", f"kvx.{stage}", *arguments))
        print(f"kvx.{stage:8} {costs[-1]}", flush=True)
    whole = Cost(
        sum(c.wall_s for c in costs), sum(c.cpu_s for c in costs), max(c.peak_bytes for c in costs)
    )
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{'together':12} {whole}; load after: {load}")


if __name__ == "__main__":
    main()
