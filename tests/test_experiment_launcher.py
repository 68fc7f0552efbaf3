"""An experiment's file can say who works on it, as the command line can."""

from pathlib import Path

import pytest

from kvx.config.folders import package_dir
from tests.conftest import Kvx

TINY = ("dataset.source.n_examples=60", "dataset.sampling.n_per_bin=1")
TEXT = """# @package _global_
defaults:
  - override /dataset: recall
  - override /hydra/launcher: kvx_local
experiment_name: {name}
hydra:
  {mode}
  launcher: {{workers: 2}}
  sweeper: {{params: {{press: "knorm,streaming", budget.ratio: "1.0,0.5"}}}}
"""


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The option that makes a folder with experiments `workers` and `alone` known."""
    monkeypatch.setenv("PYTHONPATH", str(package_dir().parent))
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "workers.yaml").write_text(TEXT.format(name="workers", mode="mode: MULTIRUN"))
    (folder / "alone.yaml").write_text(TEXT.format(name="alone", mode=""))
    return f"--config-dir={folder.parent}"


def test_it_starts_the_workers_that_it_names(kvx: Kvx, conf: str) -> None:
    outcome = kvx("run", conf, "experiment=workers", *TINY)
    assert outcome.code == 0, outcome.err
    assert "4 points complete" in outcome.err
    assert outcome.err.count("loading model") == 2  # in each worker
    assert len(list(Path("outputs/runs/workers/points").glob("*/DONE"))) == 4


def test_the_command_line_has_the_last_word(kvx: Kvx, conf: str) -> None:
    outcome = kvx("run", conf, "experiment=workers", "hydra/launcher=kvx_local",
                  "hydra.launcher.workers=1", *TINY)  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("loading model") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["experiment=alone"], "hydra/launcher=kvx_local: only for sweeps; add -m"),
        (
            ["-m", "experiment=alone,workers"],
            "a sweep over experiments has one launcher: give hydra/launcher=kvx_local",
        ),
        (
            ["experiment=workers", "hydra/launcher=kvx"],
            "hydra.launcher.workers: no such field; see `--cfg hydra` for the fields there are",
        ),
    ],
)
def test_a_launcher_that_cannot_be_followed_is_refused_in_one_line(
    kvx: Kvx, conf: str, arguments: list[str], says: str
) -> None:
    outcome = kvx("run", conf, *arguments, *TINY)
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert says in outcome.err
    assert not Path("outputs/runs").exists()
