"""The light core runs without the extras; what needs a missing one says how to install it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvx.config.folders import package_dir
from kvx.errors import EXTRAS
from tests.waiting import HANGS_S

# a finder in front of all others: packages of these names are not installed
BLOCKER = """
import sys


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED or name.startswith("hydra_plugins.hydra_submitit"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])


sys.meta_path.insert(0, NotInstalled())
"""


def without_extras(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(f"BLOCKED = {sorted(EXTRAS)!r}\n{BLOCKER}")
    paths = os.pathsep.join([str(folder), str(package_dir().parent)])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=HANGS_S,
    )  # fmt: skip


def test_the_light_core_runs_the_pipeline(tmp_path: Path) -> None:
    done = without_extras(tmp_path, "kvx.all", "experiment=sanity")
    assert done.returncode == 0, done.stderr
    assert "report: outputs/runs/sanity/report.md" in done.stdout


@pytest.mark.parametrize(
    ("extra", "command"),
    [
        ("serve", ["kvx.serve", "press=snapkv", "budget=0.5"]),
        ("openai", ["kvx.run", "engine=openai", "engine.base_url=http://127.0.0.1:9/v1"]),
        ("slurm", ["kvx.run", "-m", "press=snapkv", "budget=1.0", "hydra/launcher=kvx_slurm"]),
        ("guard", ["kvx.run", "press=knorm", "budget=0.5", "controller=balanced"]),
    ],
)
def test_a_missing_extra_is_told_in_one_line(
    extra: str, command: list[str], tmp_path: Path
) -> None:
    done = without_extras(tmp_path, *command)
    (line,) = done.stderr.strip().splitlines()[-1:]
    assert done.returncode == 2, done.stderr
    assert line.endswith(f"is not installed; pip install 'kvx[{extra}]'")
    assert "Traceback" not in done.stderr
