"""python -m kvx.simulate: from finished points to a page, and what it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from kvx.analyze.frames import load_experiment
from kvx.cli.command import compose, run_stage
from kvx.config.controller import OperatingPoint
from kvx.config.train import Labels
from kvx.guard import features
from kvx.guard.hazard import CARD, DEFAULT, HazardModel
from kvx.run.planning import plan
from kvx.scoring.loops import find_loop
from kvx.simulate import forecasts
from kvx.simulate.recorded import loop_onsets
from kvx.train.trace_data import load, prompt_ids
from kvx.verify import checks
from tests.conftest import Kvx

EXPERIMENT = "experiment_name=derails"
POINTS = (
    EXPERIMENT, "-m", "press=none,streaming,knorm", "budget=0.5,0.35,0.2", "signals=full",
    "dataset.sampling.n_per_bin=8", "decoding.max_new_tokens=64", "run.progress=false",
)  # fmt: skip
TRAINING = (
    "train.ablations=[]", "train.horizons=[]", "train.leave_out=[]", "train.n_boot=100",
    "train.rounds=20", "train.folds=2", "train.horizon=16", "train.threads=1",
)  # fmt: skip
QUICK = ("simulate.n_boot=200", "simulate.random_repeats=3", "simulate.n_thresholds=4")
MODELLESS = ("simulate.controllers=[none,reactive,rule_based,always_safe,random]",
             "simulate.match=reactive")  # fmt: skip
# of points that were run before a controller had more than a name
IDS = {
    "": "none-1-391b2bd3",
    "press=snapkv budget=0.5": "snapkv-0.5-6982754e",
    "press=streaming budget.kind=tokens budget.tokens=64 seed=3": "streaming-64t-56f6588d",
    "press=knorm budget=0.2 signals=full decoding.max_new_tokens=80": "knorm-0.2-0a4ce9d8",
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's answers under three presses, scored, and a hazard model of them."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_stage("run", list(POINTS)) == 0
        assert run_stage("score", [EXPERIMENT]) == 0
        assert run_stage("train", [EXPERIMENT, *TRAINING]) == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path, kvx: Kvx) -> Path:
    """`finished` in the directory in which `kvx` works; the folder of its guard."""
    shutil.copytree(finished / "outputs", tmp_path / "outputs", copy_function=shutil.copy2)
    return tmp_path / "outputs" / "runs" / "derails" / "guard"


def table(guard: Path) -> pd.DataFrame:
    frame: pd.DataFrame = pq.read_table(guard / "simulation.parquet").to_pandas()
    return frame


def test_one_call_reports_every_controller(kvx: Kvx, copied: Path) -> None:
    # the embedded model is never so unsure that the shipped rule would see it
    rule = ("controller=rule_based", "controller.entropy_reference_nats=0.5")
    outcome = kvx("simulate", EXPERIMENT, *QUICK, *rule)
    assert outcome.code == 0, outcome.err
    rows = table(copied)
    whole = rows[(rows["role"] == "controller") & (rows["group"] == "all")].set_index("controller")
    assert list(whole.index) == [
        "none", "conservative", "conservative, no gate", "conservative, forecast alone",
        "balanced", "balanced, no gate", "balanced, forecast alone", "aggressive",
        "aggressive, no gate", "aggressive, forecast alone", "reactive",
        "rule_based", "rule_based, repetition alone", "rule_based, entropy alone", "always_safe",
        "random",
    ]  # fmt: skip
    always, none = whole.loc["always_safe"], whole.loc["none"]
    assert (always["prevented"], always["false_trigger_rate"], always["mean_budget"]) == (1, 1, 1)
    assert (none["prevented"], none["trigger_rate"]) == (0, 0)
    assert 0.2 < none["mean_budget"] < 0.5
    # a loop detector and a gate can only add alarms to a forecast
    for name in ("conservative", "balanced", "aggressive"):
        parts = (whole.loc[f"{name}, {part}"] for part in ("forecast alone", "no gate"))
        alone, no_gate = (row["trigger_rate"] for row in parts)
        assert no_gate >= max(alone, whole.loc["reactive"]["trigger_rate"])
        assert whole.loc[name]["trigger_rate"] >= no_gate
        assert whole.loc[name]["dropped_per_1000_tokens_ci_high"] > 0
    shares = [whole.loc[n]["trigger_rate"] for n in ("conservative", "balanced", "aggressive")]
    assert shares == sorted(shares)
    assert whole.loc["random"]["trigger_rate"] == pytest.approx(
        whole.loc["balanced"]["trigger_rate"], abs=0.08
    )
    assert set(rows[rows["role"] == "sweep"]["family"]) == {
        "forecast", "forecast + loop detector", "entropy CUSUM", "probe gate", "random",
    }  # fmt: skip
    assert set(rows["group"]) == {
        "all", "press=knorm", "press=streaming", "budget=0.2", "budget=0.35", "budget=0.5",
    }  # fmt: skip
    page = (copied / "simulate.md").read_text()
    assert "prevented at best" in page
    assert "upper bound" in page
    assert "outer folds" in page
    assert "trained for the onset of a loop" in page
    assert (copied / "plots" / "pareto.png").stat().st_size > 10_000


def test_it_is_done_again_only_if_something_changed(kvx: Kvx, copied: Path) -> None:
    assert kvx("simulate", EXPERIMENT, *QUICK).code == 0
    first = (copied / "simulate.md").stat().st_mtime_ns
    assert "nothing to do" in kvx("simulate", EXPERIMENT, *QUICK).err
    assert (copied / "simulate.md").stat().st_mtime_ns == first
    outcome = kvx("simulate", EXPERIMENT, *QUICK, "controller=balanced", "controller.k=9")
    assert outcome.code == 0
    assert "nothing to do" not in outcome.err
    assert "random" in set(table(copied)["controller"])


def test_a_controller_of_ones_own_joins_the_others(kvx: Kvx, copied: Path) -> None:
    own = ("controller=reactive", "controller.name=careful", "controller.safe_budget=0.5")
    assert kvx("simulate", EXPERIMENT, *QUICK, *MODELLESS, *own).code == 0
    rows = table(copied)
    whole = rows[rows["group"] == "all"].set_index("controller")
    assert whole.loc["careful"]["prevented"] == whole.loc["reactive"]["prevented"]
    assert whole.loc["careful"]["mean_budget"] <= whole.loc["reactive"]["mean_budget"]


def test_controllers_without_a_model_need_none(kvx: Kvx, copied: Path) -> None:
    shutil.rmtree(copied)
    assert kvx("simulate", EXPERIMENT, *QUICK, *MODELLESS).code == 0
    assert "No trained model" in (copied / "simulate.md").read_text()


def test_without_a_model_of_its_own_an_experiment_gets_that_of_the_package(
    kvx: Kvx, copied: Path
) -> None:
    for name in ("predictions.parquet", "model.json", "card.json"):
        (copied / name).unlink()
    outcome = kvx("simulate", EXPERIMENT, *QUICK)
    assert outcome.code == 0, outcome.err
    page = (copied / "simulate.md").read_text()
    for said in ("comes with kvx", "`guard_study` (smollm2", "none of the 40 prompts",
                 "nor for tiny_recall"):  # fmt: skip
        assert said in page
    rows = table(copied)
    assert {"balanced", "balanced, forecast alone"} <= set(rows["controller"])
    assert "nothing to do" in kvx("simulate", EXPERIMENT, *QUICK).err


def test_each_fold_has_its_own_thresholds_and_gates(finished: Path) -> None:
    folder = finished / "outputs/runs/derails"
    seen = forecasts.own(load_experiment(folder, finished / "outputs"))
    rows = pq.read_table(folder / "guard/predictions.parquet").to_pandas()
    for row in rows.to_dict("records"):
        card = seen.cards[row["request_id"]]
        assert card.hazard[OperatingPoint.balanced] == row["threshold_balanced"]
        assert card.gate_nats[OperatingPoint.balanced] == row["gate_balanced_nats"]
    assert len({id(card) for card in seen.cards.values()}) == rows["fold"].nunique() == 2


def test_predictions_of_an_older_kvx_open_no_gate(kvx: Kvx, copied: Path) -> None:
    table_ = pq.read_table(copied / "predictions.parquet")
    old = [n for n in table_.column_names if not n.startswith("gate_")]
    pq.write_table(table_.select(old), copied / "predictions.parquet")
    outcome = kvx("simulate", EXPERIMENT, *QUICK)
    assert outcome.code == 0, outcome.err
    names = set(table(copied)["controller"])
    assert {"balanced", "balanced, forecast alone"} <= names
    assert "balanced, no gate" not in names


def test_what_the_package_forecasts_is_what_its_model_says(finished: Path) -> None:
    folder = finished / "outputs/runs/derails"
    data = load(load_experiment(folder, finished / "outputs"), Labels.excess, True)
    found, model = forecasts.packaged(data, folder), HazardModel.load(DEFAULT)
    i = int(np.argmax(data.traces.lengths))
    request = data.frame["request_id"][i]
    alone = features.build(data.traces.take(np.array([i])), model.names)
    assert found.hazard[request].tolist() == model.predict(alone).tolist()
    assert found.cards[request].hazard[OperatingPoint.balanced] == model.threshold("balanced")
    assert set(found.hazard) == set(data.frame["request_id"])


def test_the_model_of_the_package_is_not_asked_about_prompts_it_knows(
    kvx: Kvx, copied: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished / "outputs/runs/derails"
    data = load(load_experiment(folder, finished / "outputs"), Labels.excess, True)
    card = json.loads((DEFAULT / CARD).read_text())
    card["data"]["prompts"] += sorted(set(prompt_ids(data)))[:3]
    shutil.copytree(DEFAULT, tmp_path / "knows")
    (tmp_path / "knows" / CARD).write_text(json.dumps(card))
    monkeypatch.setattr(forecasts, "DEFAULT", tmp_path / "knows")
    assert kvx("simulate", EXPERIMENT, *QUICK).code == 0  # its own model is cross-fitted
    (copied / "predictions.parquet").unlink()
    outcome = kvx("simulate", EXPERIMENT, *QUICK)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "was made from 3 of these 40 prompts; run kvx.train" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["controller=balanced", "controller.tau_low=0.9", "controller.tau_high=0.1"],
         "controller.tau_low=0.9: must be at most tau_high=0.1"),
        (["controller.k=0"], "controller.k=0: must be at least 1"),
        (["controller.k=many"], "controller.k"),
        (["controller.window=3"], "controller.window: no such field"),
        (["controller=brave"], "controller=brave: unknown controller; choose one of"),
        (["simulate.controllers=[none,brave]"], "simulate.controllers: controller=brave: there is"),
        (["simulate.controllers=[]"], "simulate.controllers: name at least one"),
        (["simulate.controllers=[none,random]", "simulate.match=reactive"],
         "simulate.match=reactive: is not simulated"),
        (["simulate.n_boot=3"], "simulate.n_boot=3"),
        (["simulate.confidence=1"], "simulate.confidence=1"),
        (["simulate.lateness_tokens=-1"], "simulate.lateness_tokens=-1"),
        (["simulate.n_thresholds=0"], "simulate.n_thresholds=0"),
        (["simulate.random_repeats=0"], "simulate.random_repeats=0"),
    ],
)  # fmt: skip
def test_wrong_requests(kvx: Kvx, copied: Path, arguments: list[str], says: str) -> None:
    outcome = kvx("simulate", EXPERIMENT, *arguments)
    lines = [line for line in outcome.err.splitlines() if line]
    assert (outcome.code, len(lines)) == (2, 1), outcome.err
    assert says in lines[0]
    assert not (copied / "simulation.parquet").exists()


def test_there_must_be_something_to_replay(kvx: Kvx) -> None:
    outcome = kvx("simulate", EXPERIMENT)
    assert outcome.code == 2
    assert "no finished point" in outcome.err


def test_the_ids_of_points_are_what_they_were_before_there_were_controllers(
    tmp_path: Path,
) -> None:
    for typed, point_id in IDS.items():
        (point,) = plan([compose(*typed.split(), f"paths.output={tmp_path}")])
        assert point.id == point_id


def test_loops_are_seen_as_they_happen() -> None:
    ids = np.array([*range(8), *([1, 2, 3] * 12)], dtype=np.int32)
    found = loop_onsets(ids, len(ids))
    at = next(i for i, onset in enumerate(found) if onset is not None)
    assert find_loop(ids[: at + 1].tolist()) is not None
    assert find_loop(ids[:at].tolist()) is None
    assert loop_onsets(None, 5) == [None] * 5


def test_a_response_whose_twin_failed_is_in_no_figure(finished: Path) -> None:
    whole = load_experiment(finished / "outputs/runs/derails", finished / "outputs")
    (full,) = (p.id for p in whole.points if p.is_full_cache)
    seen = whole.catastrophes
    lost = seen[seen["point_id"] == full]["example_id"].iloc[0]
    gone = (seen["point_id"] == full) & (seen["example_id"] == lost)
    fewer = replace(whole)
    vars(fewer)["catastrophes"] = seen[~gone]  # a cached property
    before, after = (load(e, Labels.excess, True).frame["request_id"] for e in (whole, fewer))
    missing = set(before) - set(after)
    assert missing == set(
        seen[(seen["example_id"] == lost) & (seen["point_id"] != full)]["request_id"]
    )
    assert len(missing) == len(whole.points) - 1
    requests = whole.requests
    failed = (requests["point_id"] == full) & (requests["example_id"] == lost)
    silent = replace(whole)
    vars(silent)["requests"] = requests.assign(has_response=requests["has_response"] & ~failed)
    said = checks._baseline(silent, whole.points)
    assert said.verdict is checks.Verdict.WARN
    assert f"{len(missing)} responses whose full-cache run failed" in said.reason
    assert checks._baseline(whole, whole.points).verdict is checks.Verdict.OK
