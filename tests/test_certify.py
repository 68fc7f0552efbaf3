"""python -m kvx.certify: from scored points to certificates, and what it refuses."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kvx.analyze.frames import Experiment, load_experiment
from kvx.certify.certificate import Verdict, read
from kvx.certify.losses import LossReader
from kvx.certify.series import all_series, chosen
from kvx.cli.command import run_stage
from kvx.config.certify import Average, CertifyConfig, Loss
from kvx.errors import UserError
from kvx.identity.hashing import digest
from kvx.stats.betting import betting_p, fixed_order
from kvx.stats.risk_control import binomial_p
from kvx.store.catalog import PointRecord
from tests.conftest import Kvx

EXPERIMENT = "experiment_name=small"
POINTS = (
    EXPERIMENT, "-m", "press=none,snapkv,streaming", "budget=0.9,0.5,0.1",
    "dataset.sampling.n_per_bin=12", "run.progress=false",
)  # fmt: skip
LOOSE = "certify.alpha=0.3"
PLAIN = "streaming-catastrophe-alpha0.6.json"
GUARDED = "streaming-reactive-catastrophe-alpha0.6.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's answers to 60 prompts under two presses and the full cache, scored."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert run_stage("run", list(POINTS)) == 0
        assert run_stage("score", [EXPERIMENT]) == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path, kvx: Kvx) -> Path:
    """`finished` in the directory in which `kvx` works; the experiment's folder."""
    shutil.copytree(finished / "outputs", tmp_path / "outputs", copy_function=shutil.copy2)
    return tmp_path / "outputs" / "runs" / "small"


def point(experiment: Path, start: str) -> Path:
    (found,) = (experiment / "points").glob(f"{start}-*")
    return found


def column(folder: Path, table: str, name: str) -> dict[str, Any]:
    rows = pq.read_table(folder / f"{table}.parquet").to_pylist()
    return {r["example_id"]: r[name] for r in rows if r.get("primary", True)}


def change(folder: Path, table: str, name: str, value: Any, rows: slice = slice(None)) -> None:
    """Overwrite some rows of a column."""
    path = folder / f"{table}.parquet"
    found = pq.read_table(path)
    records = found.to_pylist()
    for record in records[rows]:
        record[name] = value
    pq.write_table(pa.Table.from_pylist(records, schema=found.schema), path)


def test_a_certificate_says_what_the_points_say(kvx: Kvx, copied: Path) -> None:
    outcome = kvx("certify", EXPERIMENT, LOOSE)
    assert outcome.code == 0, outcome.err
    folder = copied / "certificates"
    assert sorted(p.name for p in folder.iterdir()) == [
        "snapkv-score-alpha0.3.json", "snapkv-score-alpha0.3.md",
        "streaming-score-alpha0.3.json", "streaming-score-alpha0.3.md",
    ]  # fmt: skip
    made = read(folder / "snapkv-score-alpha0.3.json")
    (group,) = made.groups
    full = column(point(copied, "none-1"), "scores", "score")
    assert made.metric == "exact_match"
    assert made.test == "exact binomial"
    assert [t.budget for t in group.tests] == ["0.9", "0.5", "0.1"]
    verdicts = []
    for tested in group.tests:
        here = column(point(copied, f"snapkv-{tested.budget}"), "scores", "score")
        lost = sum(max(0.0, full[i] - here[i]) for i in full)
        assert (tested.n, tested.total_loss) == (60, lost)
        if tested.p is not None:
            assert tested.p == pytest.approx(binomial_p(lost, 60, 0.3))
            assert (tested.p <= 0.05) == (tested.verdict is Verdict.CERTIFIED)
        verdicts.append(tested.verdict)
    # 0.1 leaves SnapKV's window alone in short prompts
    assert verdicts == [Verdict.CERTIFIED, Verdict.NOT_CERTIFIED, Verdict.LEFT_OUT]
    assert made.budget is not None
    assert made.budget.ratio == 0.9
    assert made.setup["compressed_tokens"] == compressed_range(copied, "snapkv-0.9")
    page = (folder / "snapkv-score-alpha0.3.md").read_text()
    assert page.startswith("# Certificate: snapkv on ")
    assert "on the device" not in page
    for said in ("Keeping 0.9 of the prompt's KV entries loses at most 30%", "confidence 95%",
                 "window_size=64", made.model["hash"], "exchangeable", "degenerate", "greedy",
                 "2 curves", "certificate=snapkv-score-alpha0.3.json"):  # fmt: skip
        assert said in page


def compressed_range(experiment: Path, start: str) -> list[int]:
    """The manifest's lengths, and what its template adds to each context."""
    rows = pq.read_table(point(experiment, start) / "requests.parquet").to_pylist()
    added = {r["compressed_tokens"] - r["context_tokens"] for r in rows}
    (manifest,) = (experiment.parents[1] / "data" / "processed").rglob("manifest.json")
    bins = json.loads(manifest.read_text())["bins"]
    return [bins[0]["low_tokens"] + min(added), bins[-1]["high_tokens"] + max(added)]


def test_a_controllers_points_have_a_certificate_of_their_own(kvx: Kvx, copied: Path) -> None:
    loops = ("dataset.sampling.n_per_bin=6", "decoding.max_new_tokens=64", "run.progress=false")
    guarded = ("-m", "press=none,streaming", "budget=0.5,0.35", "controller=none,reactive",
               "controller.prefill_gate_nats=0.05")  # fmt: skip
    assert kvx("run", "experiment_name=live", *guarded, *loops).code == 0
    assert kvx("score", "experiment_name=live").code == 0
    settings = ("certify.loss=catastrophe", "certify.alpha=0.6")
    outcome = kvx("certify", "experiment_name=live", *settings)
    assert outcome.code == 0, outcome.err
    folder = copied.parent / "live" / "certificates"
    for name, steering in (("streaming", "none"), ("streaming-reactive", "reactive")):
        made = read(folder / f"{name}-catastrophe-alpha0.6.json")
        assert made.controller["name"] == made.controller["label"] == steering
        assert [t.budget for t in made.groups[0].tests] == ["0.5", "0.35"]
        assert made.setup["full_cache_point"].startswith("none-1")
        point_ids = [t.point_id for t in made.groups[0].tests]
        for point_id in point_ids:
            info = json.loads((folder.parent / "points" / point_id / "point.json").read_text())
            assert info["controller"] == steering
    assert all(t.mean_budget is None for t in read(folder / PLAIN).groups[0].tests)
    made = read(folder / GUARDED)
    page = (folder / GUARDED).with_suffix(".md").read_text()
    for tested in made.groups[0].tests:
        file = folder.parent / "points" / tested.point_id / "requests.parquet"
        rows = pq.read_table(file).to_pylist()
        steps = [r["guard_decoded_tokens"] * r["compressed_tokens"] for r in rows]
        kept = [r["guard_mean_budget"] * s for r, s in zip(rows, steps, strict=True)]
        assert tested.mean_budget == pytest.approx(sum(kept) / sum(steps))
        assert tested.mean_budget >= float(tested.budget)
        assert tested.n_responses == len(rows) == 30
        assert f"| {tested.budget} | {tested.mean_budget:.3f} (30) | 30 |" in page
    assert made.budget is not None
    assert made.budget.mean_budget > float(made.budget.budget)  # it did act there
    shown = f"{made.budget.mean_budget:.3f} was on the device on average (30 responses)"
    assert "# Certificate: streaming + reactive on" in page
    assert f"more where controller reactive relaxes, so that {shown}, loses at most 60%" in page
    assert f"with controller reactive {shown}" in outcome.err
    body = json.loads((folder / GUARDED).read_text())
    assert body["budget"]["mean_budget"] == {
        "lowest": made.budget.mean_budget, "highest": made.budget.mean_budget, "n_responses": 30,
    }  # fmt: skip
    per_bin = ("certify.per_bin=true", "certify.alpha=0.7", "certify.delta=0.5")
    assert kvx("certify", "experiment_name=live", *per_bin, settings[0]).code == 0
    binned = read(folder / "streaming-reactive-catastrophe-bins-alpha0.7-delta0.5.json")
    used = [g.tests[0].mean_budget or 0.0 for g in binned.groups]
    assert [g.tests[0].n_responses for g in binned.groups] == [6] * 5
    assert min(used) < (made.groups[0].tests[0].mean_budget or 0.0) < max(used)
    assert binned.budget is not None
    assert binned.budget.budget == "0.35"
    used = [g.tests[1].mean_budget or 0.0 for g in binned.groups]
    of_all = binned.device_use
    assert of_all is not None
    assert (of_all.lowest, of_all.highest, of_all.n_responses) == (min(used), max(used), 30)


def test_losses_of_the_other_kinds(kvx: Kvx, copied: Path) -> None:
    for loss in ("failure", "catastrophe"):
        assert kvx("certify", EXPERIMENT, LOOSE, f"certify.loss={loss}").code == 0
        made = read(copied / "certificates" / f"streaming-{loss}-alpha0.3.json")
        assert (made.loss, made.metric, made.test) == (loss, None, "exact binomial")
    failed = {
        start: set(
            pq.read_table(point(copied, start) / "failures.parquet")["example_id"].to_pylist()
        )
        for start in ("none-1", "streaming-0.5")
    }
    made = read(copied / "certificates" / "streaming-failure-alpha0.3.json")
    assert made.groups[0].tests[1].total_loss == len(failed["streaming-0.5"] - failed["none-1"])


def test_graded_scores_get_the_bounds(kvx: Kvx, copied: Path) -> None:
    assert kvx("certify", EXPERIMENT, LOOSE, "certify.metric=qa_f1").code == 0
    made = read(copied / "certificates" / "streaming-qa_f1-alpha0.3.json")
    assert (made.metric, made.test) == ("qa_f1", "Hoeffding–Bentkus")


def test_it_is_done_again_only_if_something_changed(kvx: Kvx, copied: Path) -> None:
    path = copied / "certificates" / "snapkv-score-alpha0.3.json"
    assert kvx("certify", EXPERIMENT, LOOSE).code == 0
    first = path.read_text()
    outcome = kvx("certify", EXPERIMENT, LOOSE, "certify.press=snapkv")
    assert "nothing to do" in outcome.err
    assert path.read_text() == first
    shutil.rmtree(point(copied, "snapkv-0.5"))
    assert kvx("certify", EXPERIMENT, LOOSE).code == 0
    assert [t.budget for t in read(path).groups[0].tests] == ["0.9", "0.1"]


def test_certificates_of_other_promises_lie_beside_each_other(kvx: Kvx, copied: Path) -> None:
    folder = copied / "certificates"
    for alpha, delta in (("0.3", "0.05"), ("0.2", "0.05"), ("0.05", "0.05"), ("3e-1", "0.1")):
        asked = (f"certify.alpha={alpha}", f"certify.delta={delta}", "certify.press=snapkv")
        assert kvx("certify", EXPERIMENT, *asked).code == 0
    found = {p.name: (read(p).alpha, read(p).delta) for p in folder.glob("*.json")}
    assert found == {
        "snapkv-score.json": (0.05, 0.05),
        "snapkv-score-alpha0.2.json": (0.2, 0.05),
        "snapkv-score-alpha0.3.json": (0.3, 0.05),
        "snapkv-score-alpha0.3-delta0.1.json": (0.3, 0.1),
    }


def test_where_nothing_is_certified_the_page_says_so_first(kvx: Kvx, copied: Path) -> None:
    outcome = kvx("certify", EXPERIMENT, "certify.press=snapkv")
    assert outcome.code == 0
    assert "no certificate below the full cache" in outcome.err
    assert read(copied / "certificates" / "snapkv-score.json").budget is None
    page = (copied / "certificates" / "snapkv-score.md").read_text()
    assert page.startswith("# No certificate below the full cache: snapkv on ")
    assert "promises" not in page
    assert "kvx.serve" not in page


def test_bins_share_delta(kvx: Kvx, copied: Path) -> None:
    settings = ("certify.per_bin=true", "certify.alpha=0.6", "certify.delta=0.25")
    assert kvx("certify", EXPERIMENT, *settings).code == 0
    made = read(copied / "certificates" / "streaming-score-bins-alpha0.6-delta0.25.json")
    assert [g.n for g in made.groups] == [12] * 5
    assert made.delta_per_group == pytest.approx(0.05)
    for group in made.groups:
        first = group.tests[0]
        assert (first.p <= 0.05) == (first.verdict is Verdict.CERTIFIED)  # type: ignore[operator]
    assert made.budget is not None
    for group in made.groups:
        (own,) = (t for t in group.tests if t.budget == made.budget.budget)
        assert own.verdict is Verdict.CERTIFIED
    page = copied / "certificates" / "streaming-score-bins-alpha0.6-delta0.25.md"
    assert "Bonferroni" in page.read_text()


def test_too_few_prompts_are_refused_and_leave_everything_as_it_was(kvx: Kvx, copied: Path) -> None:
    assert kvx("certify", EXPERIMENT, LOOSE).code == 0
    assert kvx("certify", EXPERIMENT).code == 0
    before = files(copied / "certificates")
    assert len(before) == 8
    outcome = kvx("certify", EXPERIMENT, "certify.alpha=0.04")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "needs n ≥ 74 prompts for certify.alpha=0.04 certify.delta=0.05" in outcome.err
    assert "it has 60 (and 1 more curve)" in outcome.err
    assert files(copied / "certificates") == before
    outcome = kvx("certify", EXPERIMENT, LOOSE, "certify.per_bin=true")
    assert "needs n ≥ 13 prompts in a length bin" in outcome.err
    assert "certify.per_bin=false" in outcome.err


def files(folder: Path) -> dict[str, tuple[int, str]]:
    return {p.name: (p.stat().st_mtime_ns, p.read_text()) for p in folder.iterdir()}


def test_only_a_certificate_that_holds_no_longer_is_removed(kvx: Kvx, copied: Path) -> None:
    assert kvx("certify", EXPERIMENT, LOOSE).code == 0
    assert kvx("certify", EXPERIMENT).code == 0
    before = files(copied / "certificates")
    shutil.rmtree(point(copied, "none-1"))
    assert kvx("certify", EXPERIMENT, LOOSE, "certify.press=snapkv").code == 2
    gone = {"snapkv-score-alpha0.3.json", "snapkv-score-alpha0.3.md"}
    assert files(copied / "certificates") == {k: v for k, v in before.items() if k not in gone}


@pytest.mark.parametrize("multirun", [[], ["-m"]])
@pytest.mark.parametrize("stage", ["certify", "analyze"])
def test_a_stage_of_an_experiment_takes_one_value_of_each_of_its_fields(
    kvx: Kvx, copied: Path, stage: str, multirun: list[str]
) -> None:
    swept = "certify.alpha=0.5,0.6" if stage == "certify" else "analyze.n_boot=range(100,300,100)"
    outcome = kvx(stage, EXPERIMENT, swept, *multirun)
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"kvx {stage}: {swept}: several values; {stage}.* takes one")
    assert not (copied / "certificates").exists()


def test_the_sweep_of_the_run_may_be_said_again(kvx: Kvx, copied: Path) -> None:
    outcome = kvx("certify", *POINTS, "certify.alpha=choice(0.3)")
    assert outcome.code == 0, outcome.err
    assert len(list((copied / "certificates").glob("*-alpha0.3.json"))) == 2


def test_a_budget_that_is_not_verified_is_left_out(kvx: Kvx, copied: Path) -> None:
    change(point(copied, "streaming-0.9"), "requests", "budget_verified", False, slice(3))
    assert kvx("certify", EXPERIMENT, "certify.alpha=0.7", "certify.press=streaming").code == 0
    made = read(copied / "certificates" / "streaming-score-alpha0.7.json")
    first, second, _ = made.groups[0].tests
    assert first.verdict is Verdict.LEFT_OUT
    assert first.reason == "the budget is not verified (3 of 60 answers)"
    assert second.verdict is Verdict.CERTIFIED


def test_without_the_full_cache_there_is_nothing_to_compare_with(kvx: Kvx, copied: Path) -> None:
    shutil.rmtree(point(copied, "none-1"))
    outcome = kvx("certify", EXPERIMENT, LOOSE)
    assert outcome.code == 2
    assert "no full cache to compare with; run press=none too" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["certify.alpha=0"], "certify.alpha=0: must be between 0 and 1"),
        (["certify.delta=1"], "certify.delta=1: must be between 0 and 1"),
        (["certify.alpha=few"], "certify.alpha"),
        (["certify.loss=harm"], "certify.loss=harm"),
        (["certify.loss=failure", "certify.metric=qa_f1"], "certify.metric=qa_f1: certify.loss=f"),
        (["certify.metric=bleu"], "certify.metric=bleu: not scored here; choose from exact_match"),
        (["certify.press=knorm"], "certify.press=knorm: not in this experiment; it has snapkv, st"),
        (["certify.controller=balanced"], "certify.controller=balanced: not in this experiment"),
        (["certify.n=3"], "certify.n: no such field"),
    ],
)
def test_wrong_requests(kvx: Kvx, copied: Path, arguments: list[str], says: str) -> None:
    outcome = kvx("certify", EXPERIMENT, *arguments)
    lines = [line for line in outcome.err.splitlines() if line]
    assert (outcome.code, len(lines)) == (2, 1), outcome.err
    assert says in lines[0]
    assert not (copied / "certificates").exists()


def test_there_must_be_something_to_certify(kvx: Kvx, copied: Path) -> None:
    assert "no finished point" in kvx("certify", "experiment_name=nothing").err
    for folder in [*(copied / "points").glob("snapkv-*"), *(copied / "points").glob("streaming-*")]:
        shutil.rmtree(folder)
    outcome = kvx("certify", EXPERIMENT)
    assert outcome.code == 2
    assert "no compressed point to certify" in outcome.err


def with_requests(whole: Experiment, requests: pd.DataFrame) -> Experiment:
    """The experiment as if these were its requests."""
    changed = dataclasses.replace(whole)
    vars(changed)["requests"] = requests  # a cached property
    return changed


def test_lost_answers_lose_everything_and_lost_twins_are_left_out(finished: Path) -> None:
    output = finished / "outputs"
    whole = load_experiment(output / "runs" / "small", output)
    full = next(p for p in whole.points if p.info["press"] == "none")
    own = next(p for p in whole.points if p.id.startswith("streaming-0.9"))
    examples = sorted(whole.requests["example_id"].unique())
    requests = whole.requests.copy()
    for point_id, example in ((own.id, examples[0]), (full.id, examples[1])):
        gone = (requests["point_id"] == point_id) & (requests["example_id"] == example)
        requests.loc[gone, "has_response"] = False
        requests.loc[gone, "failed"] = True
    changed = with_requests(whole, requests)
    for loss in Loss:
        found = LossReader(changed, CertifyConfig(loss=loss), output).of(own, full)
        assert found.losses[0] == 1
        assert np.isnan(found.losses[1])
        assert len(found.by_prompt) == 59
        assert found.n_left_out == 1


def test_examples_of_one_text_are_one_prompt(finished: Path) -> None:
    output = finished / "outputs"
    whole = load_experiment(output / "runs" / "small", output)
    own, full = (
        next(p for p in whole.points if p.id.startswith(s)) for s in ("snapkv-0.5", "none")
    )
    rank = whole.requests["example_id"].rank(method="dense").astype(int)
    texts = [f"text{r // 2}" for r in rank]
    grouped = with_requests(whole, whole.requests.assign(cluster=texts))
    one, two = (LossReader(e, CertifyConfig(), output) for e in (whole, grouped))
    assert one.test(own, 60, 0.05).name == "exact binomial"
    assert two.test(own, 60, 0.05).name == "Hoeffding–Bentkus"
    assert two.test(own, 100, 0.05).name == "betting"
    alone, paired = one.of(own, full), two.of(own, full)
    assert len(alone.by_prompt) == 60
    assert len(paired.by_prompt) == len(set(paired.clusters))
    assert set(paired.by_prompt) == {0.0, 0.5, 1.0}
    np.testing.assert_array_equal(alone.losses, paired.losses)


def records(finished: Path, *changes: dict[str, Any]) -> list[PointRecord]:
    """A point for each of `changes` of one that is on disk; `press.…` and `controller.…` go to its
    configuration.
    """
    output = finished / "outputs"
    points = load_experiment(output / "runs" / "small", output).points
    first = next(p for p in points if p.id.startswith("snapkv-0.5"))
    made = []
    for number, changed in enumerate(changes):
        info = json.loads(json.dumps(first.info)) | {"id": f"p{number}"}
        for name, value in changed.items():
            node, _, field = name.partition(".")
            if field:
                info["config"][node][field] = value
            else:
                info[name] = value
        made.append(PointRecord(first.dir, info, first.done))
    return made


def test_curves_never_mix_what_differs(finished: Path) -> None:
    guard = {"controller": "careful", "controller.name": "careful", "controller.kind": "reactive"}
    method = {"_target_": "kvpress.SnapKVPress", "window_size": 16, "kernel_size": 5}
    points = records(
        finished,
        {"budget": 0.5}, {"budget": 0.9},
        {**guard, "budget": 0.5}, {**guard, "budget": 0.25},
        {**guard, "budget": 0.5, "controller.cooldown": 64},
        {**guard, "budget": 0.5, "guard": {"max_interventions": 1}},
        {"press.method": method},
        {"seed": 3},
        {"budget_kind": "tokens", "budget": None, "budget_tokens": 64},
        {"budget_kind": "tokens", "budget": None, "budget_tokens": 256},
        {"variant_id": "other"},
        {"budget": 1.0},
    )  # fmt: skip
    found = all_series(points)
    assert {s.file_name: [p.id for p in s.points] for s in found if s.variant_id != "other"} == {
        "snapkv_window_size=64": ["p1", "p0"],
        "snapkv_window_size=64-careful": ["p2", "p3"],
        "snapkv_window_size=64-careful_cooldown=64": ["p4"],
        "snapkv_window_size=64-careful_max_interventions=1": ["p5"],
        "snapkv_window_size=16": ["p6"],
        "snapkv_window_size=64-seed3": ["p7"],
        "snapkv_window_size=64-tokens": ["p9", "p8"],
    }
    assert [p.id for s in found if s.variant_id == "other" for p in s.points] == ["p10"]
    careful = chosen(found, CertifyConfig(controller="careful"))
    assert [len(s.points) for s in careful] == [2, 1, 1]
    assert len(chosen(found, CertifyConfig(press="snapkv"))) == 8


def test_a_net_loss_and_a_mean_over_examples_have_certificates_of_their_own(
    kvx: Kvx, copied: Path
) -> None:
    asked = ("certify.alpha=0.4", "certify.press=snapkv")
    folder = copied / "certificates"
    for more in ((), ("certify.net=true",), ("certify.average=examples",)):
        assert kvx("certify", EXPERIMENT, *asked, *more).code == 0
    gross, net, examples = (
        read(folder / f"snapkv-score{name}-alpha0.4.json") for name in ("", "-net", "-examples")
    )
    assert (gross.net, gross.average, gross.test) == (False, "clusters", "exact binomial")
    assert gross.order_seed is None
    assert (net.net, net.average, net.test, net.order_seed) == (True, "clusters", "betting", 0)
    assert (examples.net, examples.average) == (False, "examples")
    full = column(point(copied, "none-1"), "scores", "score")
    here = column(point(copied, "snapkv-0.5"), "scores", "score")
    (tested,) = (t for t in net.groups[0].tests if t.budget == "0.5")
    assert tested.total_loss == pytest.approx(sum(full[i] - here[i] for i in full))
    losses = np.array([full[i] - here[i] for i in sorted(full)])
    if tested.p is not None:
        assert tested.p == pytest.approx(float(betting_p(losses[fixed_order(60)], 0.4, 0.05)))
    page = (folder / "snapkv-score-net-alpha0.4.md").read_text()
    assert "non-inferiority with a margin of 40%" in page
    assert "seed 0" in page
    assert "makes up for as much" in page
    page = (folder / "snapkv-score-examples-alpha0.4.md").read_text()
    assert "The mean is over examples (questions)" in page
    assert examples.groups[0].tests[0].n_examples == 60
    assert examples.groups[0].largest_cluster == 1


def test_where_large_texts_lose_more_the_two_means_differ(finished: Path) -> None:
    """Over texts every text counts once; over examples a large one counts by its size."""
    output = finished / "outputs"
    whole = load_experiment(output / "runs" / "small", output)
    own, full = (
        next(p for p in whole.points if p.id.startswith(s)) for s in ("snapkv-0.5", "none")
    )
    losses = LossReader(whole, CertifyConfig(), output).of(own, full)
    lost = losses.losses > 0
    grouped = dataclasses.replace(
        losses, clusters=np.where(lost, "large", [f"small{i}" for i in range(60)]).astype(object)
    )
    over_texts = grouped.by_prompt
    assert len(over_texts) == grouped.n_clusters == 61 - lost.sum()
    assert over_texts.mean() == pytest.approx(1 / len(over_texts))
    assert grouped.known.mean() == pytest.approx(lost.mean())
    for alpha in (0.5 * lost.mean(), 2 * lost.mean()):
        weighted = grouped.tested(Average.examples, alpha)
        assert (weighted.mean() > alpha) == (lost.mean() > alpha)
    np.testing.assert_array_equal(grouped.tested(Average.clusters, 0.1), over_texts)


def test_a_certificate_of_an_older_format_is_read(kvx: Kvx, copied: Path) -> None:
    assert kvx("certify", EXPERIMENT, LOOSE, "certify.press=snapkv").code == 0
    path = copied / "certificates" / "snapkv-score-alpha0.3.json"
    made, body = read(path), json.loads(path.read_text())
    for name in ("net", "average", "order_seed", "digest"):
        del body[name]
    for group in body["groups"]:
        del group["test"], group["largest_cluster"]
        for tested in group["tests"]:
            del tested["n_examples"]
    body["kvx_certificate"] = 3
    path.write_text(json.dumps({**body, "digest": digest(body, 16)}))
    old = read(path)
    assert old.budget == made.budget
    assert (old.net, old.average, old.test) == (False, "clusters", "exact binomial")
    body["kvx_certificate"] = 2
    path.write_text(json.dumps({**body, "digest": digest(body, 16)}))
    with pytest.raises(UserError, match="its format is 2, this kvx reads 3 and 4"):
        read(path)
