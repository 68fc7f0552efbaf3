"""The command line: budgets as numbers, point identity, and that every shipped option composes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.cli.arguments import after_options, drop_sweeps, understood
from kvx.cli.command import compose
from kvx.config.folders import conf_dir
from kvx.errors import UserError
from kvx.points import Point
from kvx.prepare.build import ensure_manifest
from tests.waiting import HANGS_S

OPTIONS = sorted(
    (f.parent.name, f.stem)
    for f in conf_dir().glob("*/*.yaml")
    if f.parent.name not in ("experiment", "hydra")
)
FROM_A_FILE = ("local", "mrcr_file", "qasper", "squad")
EXPERIMENTS = sorted(f.stem for f in (conf_dir() / "experiment").glob("*.yaml"))


def point(tmp_path: Path, *overrides: str) -> Point:
    config = compose(f"paths.output={tmp_path}/outputs", "dataset.source.n_examples=40", *overrides)
    return Point(config, *ensure_manifest(config))


@pytest.mark.parametrize(
    ("typed", "passed_on"),
    [
        ("budget=0.35", "budget.ratio=0.35"),
        ("budget=1", "budget.ratio=1"),
        ("budget=1.0,0.5,0.2", "budget.ratio=1,0.5,0.2"),
        ("budget=range(0.2,1.0,0.4)", "budget.ratio=0.2,0.6"),
        ("budget=choice(0.5,0.2)", "budget.ratio=0.5,0.2"),
        ("budget=ratio", "budget=ratio"),
        ("budget=tokens", "budget=tokens"),
        ("budget=ratio,tokens", "budget=ratio,tokens"),
        ("budget=certified", "budget=certified"),
        ("budget.ratio=0.5", "budget.ratio=0.5"),
        ("press=snapkv", "press=snapkv"),
    ],
)
def test_budget_takes_numbers_and_option_names(typed: str, passed_on: str) -> None:
    assert understood([typed]) == [passed_on]


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_numeric_budgets_keep_their_value(thousandths: list[int]) -> None:
    values = [t / 1000 for t in thousandths]
    typed = "budget=" + ",".join(map(str, values))
    (rewritten,) = understood([typed])
    assert [float(v) for v in rewritten.removeprefix("budget.ratio=").split(",")] == values


@pytest.mark.parametrize("typed", ["budget=0.5,tokens", "budget=abc", "budget=[0.5", "budget=true"])
def test_a_budget_that_is_none_is_refused(typed: str) -> None:
    with pytest.raises(UserError, match="budget="):
        understood([typed])


def test_aggregating_stages_ignore_the_sweep_of_run() -> None:
    arguments = ["-m", "experiment=demo", "press=snapkv,streaming", "budget=1.0,0.5", "seed=3"]
    assert drop_sweeps(arguments) == [
        "hydra.mode=RUN", "experiment=demo", "press=snapkv", "budget.ratio=1", "seed=3",
    ]  # fmt: skip


def test_a_point_has_one_id_however_it_was_typed(tmp_path: Path) -> None:
    ids = {
        point(tmp_path, "press=snapkv", *typed).id
        for typed in (
            ["budget=0.5"],
            ["budget=0.50"],
            ["budget.ratio=0.5"],
            ["budget=ratio", "budget.ratio=5e-1"],
            ["budget=0.5", "run.shard_requests=3", "analyze.n_boot=500", "experiment_name=x"],
        )
    }
    assert len(ids) == 1
    assert next(iter(ids)).startswith("snapkv-0.5-")


@pytest.mark.parametrize(
    "override",
    [
        "press=streaming",
        "budget=0.123",
        "press.method.window_size=32",
        "seed=1",
        "decoding.max_new_tokens=9",
        "prompt.query_aware=true",
        "dataset.sampling.seed=1",
        "model.dtype=bfloat16",
    ],
)
def test_what_changes_results_changes_the_id(tmp_path: Path, override: str) -> None:
    base = ["press=snapkv", "budget=0.121"]
    assert point(tmp_path, *base).id != point(tmp_path, *base, override).id


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_shipped_option_composes(group: str, option: str) -> None:
    extra = {
        "hf": ["model.path=org/name"],
        **{name: ["dataset.source.path=x.jsonl"] for name in FROM_A_FILE},
        "tokens": ["press=snapkv"],
        "certified": ["press=snapkv"],
    }
    config = compose(f"{group}={option}", *extra.get(option, []))
    assert config.experiment_name == "default"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_shipped_experiment_composes(experiment: str) -> None:
    extra = {"kvpress_board": ["model.path=org/name"]}  # of any model
    found = compose(f"experiment={experiment}", *extra.get(experiment, []))
    assert found.experiment_name == experiment


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_looking_at_the_configuration_does_not_import_torch(arguments: list[str]) -> None:
    code = (
        "import sys; from kvx.cli.entry import start\n"
        f"sys.argv = ['kvx-run', *{arguments!r}]\n"
        "try: start('run')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    command = [sys.executable, "-c", code]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=HANGS_S)


def test_shell_completion_offers_the_options() -> None:
    """As bash asks for it, after `eval "$(kvx-run --shell-completion install=bash)"`."""
    script = Path(sys.executable).with_name("kvx-run")
    asked = subprocess.run(
        [script, "--shell-completion", "query=bash"],
        env=os.environ | {"COMP_LINE": "kvx-run press=s", "COMP_POINT": "15"},
        capture_output=True, text=True, check=True, timeout=HANGS_S,
    )  # fmt: skip
    options = asked.stdout.split()
    assert {"press=snapkv", "press=snapkv_w16", "press=streaming"} <= set(options)
    assert all(option.startswith("press=s") for option in options)


def test_a_closed_pipe_is_no_traceback() -> None:
    """`kvx-run --cfg job | head -1`"""
    process = subprocess.Popen(
        [sys.executable, "-m", "kvx.run", "--cfg", "job"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.wait(timeout=HANGS_S)


def test_a_fixed_field_of_a_swept_group_waits_for_the_option() -> None:
    swept, fixed = "press=snapkv,pyramidkv", "press.method.window_size=32"
    deferred = "press.method.window_size=choice(32)"
    assert after_options(["-m", swept, fixed, "seed=1"]) == ["-m", swept, deferred, "seed=1"]
    assert after_options(["press=snapkv", fixed]) == ["press=snapkv", fixed]
