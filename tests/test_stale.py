"""What is stale: everything that was made by other code of kvx, whichever file of it changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kvx.cli.command import compose
from kvx.config.folders import package_dir
from kvx.errors import UserError
from kvx.identity.hashing import digest_of_tree, package_digest
from kvx.serve.certified import with_certified_budget
from tests.conftest import Kvx

EXPERIMENT = "experiment_name=small"
POINTS = (EXPERIMENT, "-m", "press=none,snapkv", "budget=0.9", "dataset.sampling.n_per_bin=3")
LOOSE = "certify.alpha=0.6"
# one process of the copied kvx: kvx.certify, and after kvx.score twice again
AGAIN = """
import sys
from kvx.cli.command import run_stage
for stage, *more in [("certify", LOOSE), ("score",), ("certify", LOOSE), ("certify", LOOSE)]:
    print("exit", run_stage(stage, [EXPERIMENT, *more]), file=sys.stderr)
"""


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """The package elsewhere, with its configuration inside as a wheel has it."""
    own = Path(shutil.copytree(package_dir(), tmp_path / "copy" / "kvx"))
    shutil.copytree(package_dir().parent / "conf", own / "conf", dirs_exist_ok=True)
    return own


def test_the_digest_is_of_content_not_of_place(copied: Path) -> None:
    assert digest_of_tree(copied) == package_digest()
    (copied / "notes.txt").write_text("no code")
    assert digest_of_tree(copied) == package_digest()


@pytest.mark.parametrize(
    "name",
    [
        "analyze/frames.py",
        "store/catalog.py",
        "points.py",
        "report/report.md.j2",
        "report/details.md.j2",
        "config/numbers.py",
    ],
)
def test_every_file_counts(copied: Path, name: str) -> None:
    file = copied / name
    file.write_text(file.read_text() + "\n")
    edited = digest_of_tree(copied)
    file.rename(file.with_name(f"_{file.name}"))
    assert len({edited, digest_of_tree(copied), package_digest()}) == 3


def test_an_edit_of_what_pairs_twins_makes_scores_and_certificates_stale(
    kvx: Kvx, copied: Path, tmp_path: Path
) -> None:
    for stage, *more in (("run", *POINTS), ("score", EXPERIMENT), ("certify", EXPERIMENT, LOOSE)):
        assert kvx(stage, *more).code == 0
    (path,) = Path("outputs/runs/small/certificates").glob("*.json")
    served = ("press=snapkv", "budget=certified", f"certificate={path}")
    assert json.loads(path.read_text())["code"] == package_digest()
    assert with_certified_budget(compose(*served, stage="serve"))[1] is not None
    frames = copied / "analyze" / "frames.py"
    frames.write_text(frames.read_text() + "# edited\n")
    script = AGAIN.replace("LOOSE", repr(LOOSE)).replace("EXPERIMENT", repr(EXPERIMENT))
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(copied.parent)},
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    before, scored, made, last = (part.strip() for part in done.stderr.split("exit")[:-1])
    assert "scored by other code of kvx than this; run kvx.score again" in before
    assert "2 points scored" in scored
    assert "nothing to do" not in made
    assert "nothing to do" in last
    assert [line.split()[1] for line in done.stderr.splitlines() if line.startswith("exit")] == [
        "2", "0", "0", "0",
    ]  # fmt: skip
    assert json.loads(path.read_text())["code"] == digest_of_tree(copied)
    with pytest.raises(
        UserError, match=r"was made by different code of kvx .*run kvx\.score and kvx"
    ):
        with_certified_budget(compose(*served, stage="serve"))
