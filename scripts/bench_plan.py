"""Seconds to plan a sweep of 1,000 points, and to find a finished one of 500 complete.

python scripts/bench_plan.py [EMPTY_DIR]   each command in a new process, imports included
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

PRESSES = "none,snapkv,streaming,knorm,keydiff,tova,random,expected_attention,observed_attention"
ONE_EXAMPLE = (
    "dataset.source.n_examples=5",
    "dataset.binning.n_bins=1",
    "dataset.sampling.n_per_bin=1",
    "dataset.source.max_words=250",
)
BUDGETS = "budget=range(0.05,1.05,0.05)"
PLANNED = ("-m", f"press={PRESSES}", "press.tolerance_tokens=1,2", BUDGETS, "seed=1,2,3")
FINISHED = ("-m", "press=knorm,keydiff,tova,random,streaming", BUDGETS, "seed=1,2,3,4,5")
PLAN = """
import sys, time
from kvx.cli.command import run_stage
def plan(points):
    from kvx.run.planning import plan
    found = [p.id for p in plan(points)]
    assert "torch" not in sys.modules
    print(len(points), "points,", len(set(found)), "distinct")
sys.exit(run_stage("run", sys.argv[1:], plan))
"""


def seconds(folder: Path, *command: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *command], cwd=folder, check=True)
    return time.perf_counter() - begun


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    seconds(folder, "-m", "kvx.prepare", *ONE_EXAMPLE)
    print(f"plan: {seconds(folder, '-c', PLAN, *PLANNED, *ONE_EXAMPLE):.2f} s")
    run = ("-m", "kvx.run", *FINISHED, *ONE_EXAMPLE)
    print(f"run 500 points of one example: {seconds(folder, *run):.1f} s")
    print(f"find them complete: {seconds(folder, *run):.2f} s")


if __name__ == "__main__":
    main()
