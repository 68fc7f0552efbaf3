"""kvx.train: splits by prompt, cross-fitting, and the whole stage on a small real run."""

import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import DELAY, drifting_data

from kvx.config.train import LeaveOut, Target, TrainConfig
from kvx.errors import UserError
from kvx.guard import features
from kvx.guard.hazard import HazardModel
from kvx.guard.trace_arrays import positions
from kvx.learning.labels import Role
from kvx.learning.splits import PARTS, folds, parts
from kvx.train import analyses, detection, page
from kvx.train.build import check, check_data, predictions
from kvx.train.crossfit import Table, crossfit, fit_parts, inner_parts, outer_folds
from kvx.train.judge import Judge, Results
from kvx.train.prefill_gate import caused, crossfit_gates, gates, probe_nats
from kvx.train.trace_data import prompt_ids

QUICK = {"rounds": 30, "patience": 10, "n_boot": 200, "threads": 1}
prompts = st.dictionaries(st.text(max_size=5), st.sampled_from("abc"), min_size=10, max_size=60)


@given(prompts, st.integers(2, 6), st.integers(0, 3))
def test_folds_are_even_and_do_not_depend_on_the_order_of_prompts(strata, n_folds, seed):
    found = folds(strata, n_folds, seed)
    assert folds(dict(reversed(strata.items())), n_folds, seed) == found
    sizes = np.bincount(list(found.values()), minlength=n_folds)
    assert sizes.max() - sizes.min() <= 1
    for group in set(strata.values()):
        sizes = np.bincount([found[p] for p, g in strata.items() if g == group], minlength=n_folds)
        assert sizes.max() - sizes.min() <= 1


@given(prompts, st.integers(0, 3))
def test_parts_have_the_shares_asked_for(strata, seed):
    found = parts(strata, [0.6, 0.2, 0.2], seed)
    assert set(found) == set(strata)
    assert parts(dict(reversed(strata.items())), [0.6, 0.2, 0.2], seed) == found
    share = {part: sum(p == part for p in found.values()) / len(found) for part in PARTS}
    assert [share[p] for p in PARTS] == pytest.approx([0.6, 0.2, 0.2], abs=0.16)


@pytest.fixture(scope="module")
def table():
    return Table.of(drifting_data(40))


def test_no_prompt_stands_on_two_sides(table):
    config, data = TrainConfig(), table.data
    fold = outer_folds(data, config)
    for k in range(config.folds):
        part = inner_parts(data, fold != k, config)
        assert (part[fold == k] == "").all()
        sides = defaultdict(set)
        for prompt, side in zip(data.frame["prompt"], part, strict=True):
            sides[prompt].add(side)
        assert {len(found) for found in sides.values()} == {1}
        assert set(part) == {"", *PARTS}


def test_a_prompt_is_scored_by_a_model_that_cannot_have_seen_it(table):
    """What a prompt's own traces hold changes nothing of its scores but through its features."""
    config = TrainConfig(**QUICK, folds=2)
    data, fold = table.data, outer_folds(table.data, TrainConfig(folds=2))
    names = features.SETS["logit_only"]
    before = crossfit(table, names, 32, config, fold)
    about = data.about
    onset = np.where((fold == 0) & about.events, about.onset / 2, about.onset)
    changed = replace(table, data=replace(data, about=replace(about, onset=onset)))
    after = crossfit(changed, names, 32, config, fold)
    of_first = table.tokens(fold == 0)
    assert before.score[of_first].tobytes() == after.score[of_first].tobytes()
    assert before.score[~of_first].tobytes() != after.score[~of_first].tobytes()


@pytest.fixture(scope="module")
def evaluated(table):
    config = TrainConfig(
        **QUICK, ablations=["logit_only", "metadata_only"], horizons=[],
        leave_out=[LeaveOut.press, LeaveOut.model],
    )  # fmt: skip
    fold = outer_folds(table.data, config)
    return *analyses.evaluate(table, config, fold), fold, config


def figure(results, analysis, name, metric):
    return next(
        r
        for r in results.rows
        if (r["analysis"], r["name"], r["metric"]) == (analysis, name, metric)
    )


def test_a_drift_before_the_onset_is_foreseen_and_metadata_do_not_foresee_it(evaluated):
    results, *_ = evaluated
    learnt = figure(results, "features", "logit_only", "auroc")
    lookup = figure(results, "features", "metadata_only", "auroc")
    cusum = figure(results, "baseline", "entropy CUSUM", "auroc")
    assert learnt["ci_low"] > 0.7
    assert learnt["value"] > lookup["value"] + 0.1
    assert cusum["ci_low"] > 0.5
    assert figure(results, "baseline", "n-gram repetition", "auroc")["value"] < 0.65  # noise here
    assert figure(results, "leave_one_press_out", "knorm", "auroc")["value"] > 0.7


def test_a_budget_in_tokens_is_one_group_whatever_share_of_a_prompt_it_is(evaluated, table):
    _, cross, fold, config = evaluated
    frame = table.data.frame
    tokens = (frame["press"] == "knorm").to_numpy()
    frame = frame.assign(
        budget=np.where(tokens, np.linspace(0.1, 0.9, len(frame)), frame["budget"]),
        budget_kind=np.where(tokens, "tokens", "ratio"),
        budget_asked=np.where(tokens, 64.0, frame["budget_asked"]),
        budget_label=np.where(tokens, "64t", frame["budget_label"]),
    )
    changed = replace(table, data=replace(table.data, frame=frame))
    judge = Judge(changed, replace(config, n_boot=100), fold)
    analyses._by_group(judge, cross)
    rows = [r for r in judge.results.rows if r["analysis"] == "by_budget"]
    assert {r["name"] for r in rows} == {"64t", "0.2"}
    by_press = {r["metric"]: r["value"] for r in judge.results.rows if r["name"] == "knorm"}
    assert {r["metric"]: r["value"] for r in rows if r["name"] == "64t"} == by_press


def test_the_instant_ones_are_told_by_the_probe_and_are_not_in_the_headline(evaluated, table):
    results, *_ = evaluated
    probe = figure(results, "early", "instant: probe alone", "auroc")
    assert probe["value"] > 0.95
    assert probe["n_positive"] == table.data.about.instant.sum() > 0
    headline = figure(results, "headline", "full", "trace_auroc")
    assert headline["n_positive"] == (table.data.about.events & ~table.data.about.instant).sum()


def test_first_tokens_are_a_forecast_only_of_what_starts_after_them(evaluated, table):
    results, *_ = evaluated
    about, kept = table.data.about, table.data.compressed
    late = about.events & (about.onset >= 8)
    found = figure(results, "early", "onset after the first 8 tokens: probe alone", "auroc")
    assert found["n_positive"] == late.sum() < about.events.sum()
    assert found["n"] == (kept & (late | ~about.events)).sum()


def test_before_the_detection_every_loop_counts_up_to_its_report(evaluated, table):
    results, *_ = evaluated
    data, view = table.data, detection.ANALYSIS
    kept, about = data.compressed & (data.about.role != Role.LEFT_OUT), data.about
    late = data.until_detection()
    assert (late.about.role == about.role).all()
    assert (late.about.onset - about.onset)[about.events].tolist() == [DELAY] * about.events.sum()
    ends = np.where(about.events, about.onset + DELAY, data.traces.lengths)
    by_onset = detection.onset_name("full")
    for name in ("full", by_onset, "logit_only", "metadata_only", "entropy CUSUM"):
        tokens, traces = (figure(results, view, name, m) for m in ("auroc", "trace_auroc"))
        assert (tokens["n"], traces["n"]) == (ends[kept].sum(), kept.sum())
        assert traces["n_positive"] == (about.events & kept).sum()
    median = figure(results, view, detection.DELAY, "delay_median")
    assert (median["value"], median["n"]) == (DELAY, (about.events & kept).sum())
    assert any(r["analysis"] == detection.without(LeaveOut.press) for r in results.rows)


def test_the_view_before_the_detection_learns_what_the_headline_cannot(table):
    """Signals that move between onset and detection only are no forecast of the onset."""
    data = table.data
    since = positions(data.traces.lengths) - np.repeat(data.about.onset, data.traces.lengths)
    features_ = np.zeros_like(table.features)
    features_[:, table.columns(["entropy_nats"])[0]] = (since >= 0) & (since < DELAY)
    config = TrainConfig(**QUICK, folds=2, ablations=[], horizons=[], leave_out=[])
    moved = replace(table, features=features_)
    results, _ = analyses.evaluate(moved, config, outer_folds(data, config))
    assert figure(results, "headline", "full", "auroc")["value"] == pytest.approx(0.5, abs=0.05)
    assert figure(results, detection.ANALYSIS, "full", "auroc")["value"] > 0.8


def test_without_token_ids_there_is_no_view_before_the_detection(table):
    data = replace(table.data, frame=table.data.frame.assign(detected=np.nan))
    config = TrainConfig(
        **QUICK, folds=2, ablations=[], horizons=[], leave_out=[], target=Target.onset
    )  # fmt: skip
    results, _ = analyses.evaluate(replace(table, data=data), config, outer_folds(data, config))
    assert not any(r["analysis"] == detection.ANALYSIS for r in results.rows)
    assert "before the loop can be detected: responses without token ids" in results.skipped


def test_what_is_written_foresees_what_the_target_says(table):
    """Signals that move between onset and detection only: a model of the onset is blind to them."""
    data = table.data
    since = positions(data.traces.lengths) - np.repeat(data.about.onset, data.traces.lengths)
    features_ = np.zeros_like(table.features)
    features_[:, table.columns(["entropy_nats"])[0]] = (since >= 0) & (since < DELAY)
    moved = replace(table, features=features_)
    fold = outer_folds(data, TrainConfig(folds=2))
    compressed = table.tokens(data.compressed & data.about.events)
    between = compressed & (since >= 0) & (since < DELAY)
    found = {}
    for target in Target:
        config = TrainConfig(
            **QUICK, folds=2, ablations=[], horizons=[], leave_out=[], target=target
        )  # fmt: skip
        _, cross = analyses.evaluate(moved, config, fold)
        found[target] = cross.score[between].mean() - cross.score[compressed & (since < 0)].mean()
        part = inner_parts(data, np.ones(len(data), bool), config)
        aimed = moved if target is Target.onset else moved.until_detection()
        model = fit_parts(aimed, part, features.SETS["full"], 32, config)
        rise = np.diff(model.predict(features_[np.argsort(features_.max(axis=1))[[0, -1]]][
            :, moved.columns(features.SETS["full"])]))[0]  # fmt: skip
        assert (rise > 0.2) == (target is Target.detection)
    assert found[Target.detection] > 0.3
    assert abs(found[Target.onset]) < 0.1


def test_a_gate_holds_what_it_promises_where_it_was_chosen(table):
    data = table.data
    sound = data.compressed & ~caused(data)
    among = np.arange(len(data)) % 2 == 0
    for name, gate in gates(data, among).items():
        share = (probe_nats(data)[among & sound] >= gate["nats"]).mean()
        assert share <= gate["false_gate_rate"], name
        lower = np.nextafter(np.float32(gate["nats"]), np.float32(0))
        more = (probe_nats(data)[among & sound] >= lower).mean()
        assert more > gate["false_gate_rate"], name  # it is the lowest that does
    blind = data.traces.prefill | {"probe_kl_nats": np.full((len(data), 8), np.nan, np.float32)}
    unseen = replace(data, traces=replace(data.traces, prefill=blind))
    assert gates(unseen, among) == {}
    assert np.isnan(crossfit_gates(unseen, TrainConfig(), outer_folds(data, TrainConfig()))[
        "balanced"]).all()  # fmt: skip


def test_gates_are_judged_on_untouched_prompts(evaluated, table):
    results, *_ = evaluated
    lost = caused(table.data) & table.data.compressed
    found = {m: figure(results, "gate", "balanced", m) for m in (
        "false_gate_rate", "recall", "recall_of_instant")}  # fmt: skip
    assert found["recall"]["n"] == lost.sum()
    assert found["recall_of_instant"]["n"] == table.data.about.instant.sum()
    # what starts at once has a high probe here, nothing else has
    assert found["recall_of_instant"]["value"] > 0.8
    assert found["false_gate_rate"]["value"] < 0.2


def left_out(table, presses, method):
    """What leave-one-press-out learns from, press by press, with `method` [presses]."""
    data = table.data
    frame = data.frame.assign(
        press=[presses[p] for p in data.frame["press"]],
        method=[method[presses[p]] for p in data.frame["press"]],
    )
    config = TrainConfig(
        **QUICK, ablations=[], horizons=[], leave_out=[LeaveOut.press], folds=2
    )  # fmt: skip
    changed = replace(table, data=replace(data, frame=frame))
    return analyses.evaluate(changed, config, outer_folds(changed.data, config))[0]


def test_a_press_is_left_out_with_its_other_settings(table):
    presses = {"none": "none", "snapkv": "snapkv", "knorm": "snapkv_w16"}
    apart = {"none": "none", "snapkv": "a", "snapkv_w16": "b"}
    results = left_out(table, presses, apart)
    assert figure(results, "leave_one_press_out", "snapkv_w16", "auroc")["value"] > 0.6
    results = left_out(table, presses, {**apart, "snapkv_w16": "a"})
    assert any("one press only (snapkv, snapkv_w16)" in why for why in results.skipped)


def test_leaving_out_all_that_happens_ends_nothing_else(table):
    """Of the presses that are left, none has an event: said, and the other figures stand."""
    data = table.data
    keep = (data.frame["press"] != "knorm") | ~data.about.events
    some = data.take(keep.to_numpy())
    small = Table(some, table.features[table.tokens(keep.to_numpy())], table.names)
    names = dict.fromkeys(("none", "snapkv", "knorm"))
    results = left_out(small, {n: n for n in names}, {n: n for n in names})
    assert any("snapkv: too few catastrophes" in why for why in results.skipped)
    assert figure(results, "headline", "full", "auroc")["n_positive"] > 0


def test_another_model_is_judged_on_prompts_that_it_does_not_know(table):
    data, config = table.data, TrainConfig(**QUICK, folds=2)
    part = inner_parts(data, np.ones(len(data), bool), config)
    model = fit_parts(table, part, features.SETS["full"], 32, config)
    ids = prompt_ids(data)
    counted = data.compressed & ~data.about.instant
    for known in (set(ids), set(ids[: len(ids) // 2]), set()):
        judged = {i for i, c in zip(ids, counted, strict=True) if c} - known
        results = Results()
        card = model.with_card(data={"prompts": sorted(known)})
        analyses.compare(table, config, outer_folds(data, config), "other", card, results)
        assert {row["n_prompts"] for row in results.rows} == ({len(judged)} if judged else set())
        assert len(results.skipped) == bool(known)


def test_thresholds_hold_about_what_they_promise_on_untouched_prompts(evaluated):
    results, *_ = evaluated
    found = figure(results, "headline", "full", "aggressive.false_positive_rate")
    assert found["value"] < 0.35  # 10% were allowed, of few traces
    assert figure(results, "headline", "full", "ece")["value"] < 0.1


def test_what_cannot_be_left_out_is_said(evaluated):
    results, *_ = evaluated
    assert "leave-one-model-out: there is one model only (m)" in results.skipped


def test_predictions_are_of_every_token_with_the_thresholds_of_its_fold(evaluated, table):
    _, cross, fold, config = evaluated
    part = inner_parts(table.data, np.ones(len(table.data), bool), config)
    gate = crossfit_gates(table.data, config, fold)
    rows = predictions(table.data, cross, gate, fold, part)
    assert [len(r["hazard"]) for r in rows] == table.data.traces.lengths.tolist()
    assert not np.isnan(np.concatenate([r["hazard"] for r in rows])).any()
    by_fold = defaultdict(set)
    for row in rows:
        by_fold[row["fold"]].add((row["threshold_balanced"], row["gate_balanced_nats"]))
    assert {len(found) for found in by_fold.values()} == {1}


def test_the_tables_name_every_analysis(evaluated):
    results, *_ = evaluated
    card = {
        "training": {"features": "full", "folds": 5, "n_boot": 200, "confidence": 0.95,
                     "labels": "excess", "target": "detection"},
        "horizon_tokens": 32,
        "data": {"n_traces": 1, "n_prompts": 1, "n_tokens": 1, "n_event": 1, "n_instant": 1,
                 "n_negative": 1, "n_left_out": 1, "models": ["m"], "datasets": ["d"],
                 "presses": ["p"]},
    }  # fmt: skip
    text = page.document("x", card, results)
    for title in ("Feature sets", "no training", "Leave one press out", "by dataset", "Not done",
                  "Alarms", "by position", "first tokens", "Before the loop can be detected",
                  "saw nothing of the press", "gate before the first token"):  # fmt: skip
        assert title in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert min(widths) >= 5
    assert "nan" not in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"features": "fll"}, "train.features=fll"),
        ({"ablations": ["full", "some"]}, "train.ablations=some"),
        ({"folds": 1}, "train.folds=1"),
        ({"shares": [0.5, 0.5]}, "train.shares"),
        ({"shares": [1.0, 0.0, 0.0]}, "train.shares"),
        ({"horizons": [0]}, "train.horizons=0"),
        ({"confidence": 95.0}, "train.confidence"),
    ],
)
def test_wrong_settings_are_named(settings, said):
    with pytest.raises(UserError, match=said):
        check(TrainConfig(**settings))


def test_too_little_to_learn_from_is_said(tmp_path):
    data = drifting_data(20)
    one = data.frame["prompt"] == data.frame["prompt"][0]
    with pytest.raises(UserError, match="1 prompt; a split by prompt"):
        check_data(tmp_path, data.take(one.to_numpy()), TrainConfig())
    sound = data.take(~data.about.events)
    with pytest.raises(UserError, match="no catastrophe"):
        check_data(tmp_path, sound, TrainConfig())
    unknown = replace(data, frame=data.frame.assign(detected=np.nan))
    with pytest.raises(UserError, match=r"set train\.target=onset"):
        check_data(tmp_path, unknown, TrainConfig(target=Target.detection))
    check_data(tmp_path, unknown, TrainConfig())
    data.traces.signals["top1_prob"][:] = np.nan
    with pytest.raises(UserError, match="features=top20"):
        check_data(tmp_path, data, TrainConfig())


RUN = (
    "model=tiny_recall", "signals=full", "press=expected_attention,random",
    "budget=1.0,0.5,0.2,0.1",
    "decoding.max_new_tokens=64", "run.progress=false", "dataset.sampling.n_per_bin=8",
)  # fmt: skip
TRAIN = (
    "train.rounds=20", "train.n_boot=100", "train.folds=2", "train.horizons=[]", "train.threads=1",
    "train.ablations=[logit_only]", "train.leave_out=[press,model]", "train.horizon=16",
    "train.seed=3",
)  # fmt: skip


@pytest.fixture
def learnt(kvx):
    for stage in ("run", "score"):
        assert kvx(stage, *(["-m"] if stage == "run" else []), *RUN).code == 0


def test_from_a_run_to_a_model(kvx, learnt, tmp_path):
    assert kvx("train", *TRAIN).code == 0
    folder = tmp_path / "outputs/runs/default/guard"
    model = HazardModel.load(folder, features.SETS["full"])
    predictions = pq.read_table(folder / "predictions.parquet").to_pandas()
    figures = pq.read_table(folder / "evaluation.parquet").to_pandas()
    card = json.loads((folder / "card.json").read_text())
    assert card["data"]["n_event"] == (predictions["role"] == "event").sum() > 10
    assert set(card["thresholds"]) == {"conservative", "balanced", "aggressive"}
    assert card["training"]["target"] == "onset"
    assert set(card["gate"]) == set(card["thresholds"])
    assert predictions["gate_balanced_nats"].notna().all()
    points = tmp_path / "outputs/runs/default/points"
    lengths = {
        row["request_id"]: row["output_tokens"]
        for point in points.iterdir()
        for row in pq.read_table(point / "requests.parquet").to_pylist()
    }
    hazards = predictions.set_index("request_id")["hazard"]
    assert {i: len(hazard) for i, hazard in hazards.items()} == {
        i: lengths[i] for i in hazards.index
    }
    # eight points, the full cache of two presses once: they generate the same there
    assert len(predictions) == 7 * 40
    assert {
        "headline", "features", "baseline", "early", "leave_one_press_out", "before_detection",
        "before_detection_without_press",
    } <= set(figures["analysis"])  # fmt: skip
    assert (folder / "train.md").read_text().startswith("# Hazard model of default")
    assert model.horizon == 16

    before = {f: (folder / f).read_bytes() for f in ("model.json", "card.json", "train.md")}
    assert "nothing to do" in kvx("train", *TRAIN).err
    (folder / "evaluation.parquet").unlink()
    assert kvx("train", *TRAIN).code == 0
    assert {f: (folder / f).read_bytes() for f in before} == before

    # another experiment's model with other features, and this one's own
    other = kvx("train", *TRAIN, "train.features=logit_only", f"train.compare={folder}")
    assert (other.code, other.err.count("\n")) == (2, 1)
    assert "features are not the" in other.err
    verified = kvx("verify", *TRAIN)
    assert verified.code in (0, 1)


@pytest.mark.parametrize(
    ("run", "train", "said"),
    [
        (("signals=off", "budget=1.0,0.2"), (), "signals=full"),
        (("signals=light", "budget=1.0,0.2"), (), "light"),
        (("signals=full", "budget=0.2"), (), "no baseline"),
        (("signals=full", "budget=1.0,0.2"), ("train.folds=4",), "5 prompts"),
        (("signals=full", "budget=1.0,0.9"), ("train.folds=2",), "no catastrophe"),
    ],
)
def test_what_cannot_be_learnt_from_is_one_line(kvx, run, train, said):
    more = ("model=tiny_recall", "press=streaming", "dataset.sampling.n_per_bin=1",
            "run.progress=false")  # fmt: skip
    assert kvx("run", "-m", *more, *run).code == 0
    assert kvx("score").code == 0
    for stage, code in (("train", 2), ("verify", 1)):
        outcome = kvx(stage, *train)
        assert outcome.code == code
        last = outcome.err.strip().splitlines()[-1]
        if stage == "train":
            assert said in last
        assert last.startswith(f"kvx {stage}:")
