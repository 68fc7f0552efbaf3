"""A wheel holds everything: configuration, embedded model, report template, launcher."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kvx.config.folders import package_dir
from tests.waiting import HANGS_S


def run(*command: str, cwd: Path, path: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=HANGS_S
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """kvx from a wheel, not editable, in a directory of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    source = str(package_dir().parent)
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), source]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("kvx-*.whl")
    target = folder / "site"
    options = ["--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, "install", *options, str(wheel)], check=True)
    return target


def test_the_pipeline_runs_from_a_wheel_in_an_empty_directory(
    installed: Path, tmp_path: Path
) -> None:
    where = run(
        sys.executable, "-c", "import kvx; print(kvx.__file__)", cwd=tmp_path, path=installed
    )
    assert where.stdout.startswith(str(installed))
    script = str(installed / "bin" / "kvx-all")
    outcome = run(sys.executable, script, "experiment=sanity", cwd=tmp_path, path=installed)
    assert outcome.returncode == 0, outcome.stderr
    assert "report: outputs/runs/sanity/report.md" in outcome.stdout
    report = (tmp_path / "outputs/runs/sanity/details.md").read_text()
    page = (tmp_path / "outputs/runs/sanity/report.html").read_text(encoding="utf-8")
    assert "Observable" in page  # the plots' library came along
    assert "| git commit | `none (installed package)` |" in report
    assert "`kvx-all experiment=sanity`" in report


def test_every_console_script_knows_its_help(installed: Path, tmp_path: Path) -> None:
    for stage in ("prepare", "run", "score", "analyze", "report", "all"):
        script = str(installed / "bin" / f"kvx-{stage}")
        outcome = run(sys.executable, script, "--help", cwd=tmp_path, path=installed)
        assert outcome.returncode == 0, outcome.stderr
        assert outcome.stdout.startswith(f"kvx {stage}: ")
    assert list(tmp_path.iterdir()) == []
