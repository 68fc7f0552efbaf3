"""`kvx.sweep`: the points and tables of the command line, from Python."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import Kvx, request_rows
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import kvx as package
from kvx.analyze.build import TABLES
from kvx.cli import keywords
from kvx.config.measures import Measure
from kvx.errors import UserError

SIZE = {
    "dataset.source.n_examples": 12,
    "dataset.sampling.n_per_bin": 2,
    "dataset.binning.n_bins": 1,
}
FIELDS = {"press": ["snapkv", "knorm"], "budget": [1.0, 0.5], **SIZE, "analyze.n_boot": 100}
ARGV = (
    "-m", "press=snapkv,knorm", "budget=1.0,0.5", "dataset.source.n_examples=12",
    "dataset.sampling.n_per_bin=2", "dataset.binning.n_bins=1", "analyze.n_boot=100",
)  # fmt: skip


def test_the_door_makes_the_points_and_tables_of_the_command_line(kvx: Kvx) -> None:
    before = GlobalHydra.instance().hydra, HydraConfig.instance().cfg, mpl.get_backend()
    handlers = list(logging.getLogger("kvx").handlers)
    sweep = package.sweep(**FIELDS, experiment_name="door")
    assert sweep.run() is sweep
    ours = sweep.tables()
    after = GlobalHydra.instance().hydra, HydraConfig.instance().cfg, mpl.get_backend()
    assert after == before
    assert list(logging.getLogger("kvx").handlers) == handlers
    assert kvx("all", *ARGV, "experiment_name=typed").code == 0
    theirs = Path("outputs/runs/typed")
    assert set(sweep.point_ids()) == {p.name for p in theirs.glob("points/*")}
    pd.testing.assert_frame_equal(request_rows(sweep.dir), request_rows(theirs))
    for name in TABLES:
        table = pq.read_table(theirs / f"{name}.parquet").to_pandas()
        made = [c for c in table if c.endswith("_s") or "latency" in c or "memory" in c]
        pd.testing.assert_frame_equal(ours[name].drop(columns=made), table.drop(columns=made))
    assert len(ours["requests"]) == ours["scores"]["primary"].sum() == 4 * 2
    report = sweep.report()
    assert Path(report).is_file()
    assert report._repr_markdown_() == (theirs.parent / "door" / "report.md").read_text()
    status = sweep.status()
    assert set(status["id"]) == set(sweep.point_ids())
    assert set(status["state"]) == {"done"}
    assert list(status["there"]) == list(status["asked"]) == [2] * 4


def test_latencies_alone_are_a_table(kvx: Kvx) -> None:
    sweep = package.sweep(**SIZE, measure=Measure.latency, **{"latency.repeats": 1})
    assert len(sweep.run().tables()["latency"]) == 2
    with pytest.raises(UserError, match="holds latencies only; nothing to report"):
        sweep.report()


@pytest.mark.parametrize(
    ("fields", "argument"),
    [
        ({"press": ["snapkv", "knorm"]}, "press=snapkv,knorm"),
        ({"budget": "256t"}, "budget=256t"),
        ({"budget": ("256t", "64t")}, "budget=256t,64t"),
        ({"seed": range(2)[1]}, "seed=1"),
        ({"model.trust_remote_code": True}, "model.trust_remote_code=true"),
        ({"model.revision": None}, "model.revision=null"),
        ({"model.revision": "null"}, "model.revision='null'"),
        ({"experiment_name": "007"}, "experiment_name='007'"),
        ({"model.path": Path("/x/epoch=3")}, "model.path='/x/epoch=3'"),
        ({"dataset.metrics": ["a", "b"]}, "dataset.metrics=[a,b]"),
        ({"score.metrics": ["a", "b"]}, "score.metrics=[a,b]"),
        ({"decoding.until": [["a"], ["b", "c d"]]}, "decoding.until=[a],[b,'c d']"),
        ({"press.method.window_size": [16, 32]}, "press.method.window_size=16,32"),
        ({"model.device_map": {"model": 0, "lm_head": 1}}, "model.device_map={model:0,lm_head:1}"),
    ],
)
def test_values_become_what_would_be_typed(fields: dict[str, object], argument: str) -> None:
    assert keywords.arguments(fields) == [argument]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"press": "snapvk"}, "snapvk"),
        ({"budget": 1.5}, "budget"),
        ({"buget": 0.5}, "buget"),
        ({"press": []}, "press=[]: a sweep without values; give at least one"),
        ({"hydra.launcher.workers": 2}, "Hydra's own settings belong on a command line"),
        ({"model": object()}, "model: a configuration cannot hold object"),
        ({"experiment_name": ["a", "b"], "press": "snapkv"}, "experiment_name"),
        ({"score.reasoning": ["strip", "keep"]}, "several values; score.* takes one"),
        ({"dataset.metrics": ["exact_mtach"]}, "did you mean exact_match?"),
    ],
)
def test_a_wrong_sweep_is_one_line(kvx: Kvx, fields: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as error:
        package.sweep(**fields)
    assert "\n" not in str(error.value)
    assert GlobalHydra.instance().hydra is None


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "docs" / "python.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("outputs/runs/from_python/report.md")
    assert (tmp_path / "outputs/runs/from_python/bin_stats.parquet").is_file()


def test_naming_the_door_imports_no_torch() -> None:
    look = "import sys, kvx; kvx.sweep(press='snapkv'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["False"], done.stderr
