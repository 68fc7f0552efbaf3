"""`kvx run`, `kvx-run` and `python -m kvx.run` are one; the stages are listed in one place."""

import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from kvx import __version__
from kvx.cli import entry
from kvx.cli.stage_help import stage_help
from kvx.cli.stages import STAGES, TOOLS
from kvx.config.folders import conf_dir, package_dir
from kvx.config.schema import Config
from tests.waiting import HANGS_S


def kvx_module(cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, timeout=HANGS_S
    )


@pytest.mark.parametrize("name", STAGES)
def test_a_row_names_what_is_there(name: str) -> None:
    stage = STAGES[name]
    assert callable(stage.function())
    assert (conf_dir() / f"{name}.yaml").is_file()
    assert (package_dir() / name / "__main__.py").read_text().count(f'start("{name}")') == 1
    assert set(stage.reads) <= {field.name for field in fields(Config)}


def test_every_package_that_starts_is_in_the_table_and_has_a_script() -> None:
    starts = {file.parent.name for file in package_dir().glob("*/__main__.py")}
    assert starts == {*STAGES, *TOOLS}
    project = package_dir().parent / "pyproject.toml"
    scripts = tomllib.loads(project.read_text())["project"]["scripts"]
    assert set(scripts) == {"kvx", *(f"kvx-{name}" for name in starts)}


def said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *argv: str
) -> tuple[str, str]:
    monkeypatch.setattr(sys, "argv", ["/bin/kvx", *argv])
    entry.kvx()
    return capsys.readouterr()


def test_kvx_lists_its_stages_and_its_version(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = said(capsys, monkeypatch)[0]
    assert listed == said(capsys, monkeypatch, "--help")[0]
    for stage in STAGES.values():
        assert f"  {stage.name:<10}{stage.help}\n" in listed
    assert said(capsys, monkeypatch, "--version")[0] == f"kvx {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("rnu", "kvx: rnu: no such stage; did you mean run?\n"),
        ("asets", "kvx: asets: no such stage; did you mean assets?\n"),
        ("x=1", f"kvx: x=1: no such stage; there are {', '.join([*STAGES, *TOOLS])}\n"),
    ],
)
def test_an_unknown_stage_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, typed: str, line: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        said(capsys, monkeypatch, typed)
    assert ended.value.code == 2
    assert capsys.readouterr().err == line


def test_kvx_run_is_python_m_kvx_run(tmp_path: Path) -> None:
    for typed in (["budget=2"], ["--cfg", "hydra", "--package", "hydra.job"]):
        one = kvx_module(tmp_path, "kvx", "run", *typed)
        other = kvx_module(tmp_path, "kvx.run", *typed)
        assert (one.returncode, one.stdout, one.stderr) == (
            other.returncode, other.stdout, other.stderr,
        )  # fmt: skip
    assert "name: run\n" in one.stdout
    refused = kvx_module(tmp_path, "kvx", "run", "budget=2")
    assert (refused.returncode, refused.stderr.splitlines()[0][:16]) == (2, "kvx run: budget=")


def test_the_command_in_results_can_be_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    from kvx.identity.provenance import command_line

    for program, command in (
        ("/bin/kvx", "kvx-run seed=1"), ("/x/kvx/__main__.py", "python -m kvx.run seed=1"),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", [program, "run", "seed=1"])
        monkeypatch.setattr(entry, "start", lambda name: None)
        entry.kvx()
        assert command_line() == command


def test_help_shows_the_fields_of_the_stage_alone(tmp_path: Path) -> None:
    (tmp_path / "press").mkdir()
    (tmp_path / "press" / "mine.yaml").write_text("name: mine\n")
    text = stage_help(STAGES["score"], ["--help", "--config-dir", str(tmp_path)])
    assert text.startswith(f"kvx score: {STAGES['score'].help}.\n")
    assert ", mine, " in text
    assert (
        "  score.answer_format=null\n      number, json, yes_no, or any: none is asked for\n"
        in text
    )
    assert "  experiment_name=default\n" in text
    assert "signals" not in text
    assert "n_boot" not in text
    assert "--hydra-help" in text
    assert text.count("\n  kvx score ") == 3
