"""Seeds as samples, and full caches that rounding tells apart, from answers to the report."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from kvx.analyze.numerics import ROUNDING, apart_from_rounding
from kvx.points import Point
from kvx.report.samples_section import noise
from kvx.scoring.failures import FailureType
from kvx.stats.samples import pass_at_k
from kvx.store import schemas
from kvx.store.catalog import PointRecord
from kvx.store.layout import Done
from tests.conftest import Kvx
from tests.test_catastrophes import FOLDER, write_experiment
from tests.test_press_pairs import Answer, failing, tables

AnswerOf = Callable[[int, float], Answer]
SAMPLED = ("seed=0,1,2", "decoding.temperature=1.0")


def by_seed(point: Point) -> AnswerOf:
    """At half the budget: 10 prompts fail always, 10 with one of three seeds each."""
    return failing(range(10), range(10 + point.config.seed, 19, 3))


def test_seeds_are_samples_of_one_configuration(kvx: Kvx) -> None:
    write_experiment(failing(), *SAMPLED, choose=by_seed)
    samples, leading = tables(kvx, "samples", "leaders")
    assert pq.read_schema(FOLDER / "samples.parquet").remove_metadata() == schemas.SAMPLES
    assert len(leading) == 0
    overall = samples[(samples["bin"] == -1) & (samples["budget_label"] == "0.5")].set_index("k")
    assert list(overall.index) == [1, 2, 3]
    right = [0] * 10 + [2] * 9 + [3] * 21
    for k in (1, 2, 3):
        assert overall.loc[k, "pass_at_k"] == pytest.approx(pass_at_k(right, 3, k).mean())
        assert overall.loc[k, "twin_pass_at_k"] == 1
    first = overall.loc[1]
    assert first["difference"] == pytest.approx(-(30 + 9) / 120)
    assert first["ci_low"] < first["pass_at_k"] < first["ci_high"]
    assert first["p_holm"] < 0.001
    assert first["n_clusters"] == 40  # prompts, not answers
    assert 0 < first["variance_within"] < first["variance_between"]
    report = (FOLDER / "details.md").read_text()
    assert "Sampled 3 times, a prompt's own answers make" in report
    assert "| pass@2 | pass@3 |" in report


def test_a_silent_full_cache_is_no_gain(kvx: Kvx) -> None:
    """It times out on 12 prompts, of 4 in one sample of two: these are left out, not won."""

    def silent(point: Point) -> AnswerOf:
        times_out = range(12 if point.config.seed else 8)
        return lambda number, budget: (
            ("", None, FailureType.TIMEOUT) if budget == 1 and number in times_out
            else ("Nora met Ivo" if number != 39 or budget == 1 else "Nora, no", [1, 0], "stop")
        )  # fmt: skip

    sampled = ("seed=0,1", "decoding.temperature=1.0", "press=knorm,tova")
    write_experiment(failing(), *sampled, choose=silent)
    samples, leading = tables(kvx, "samples", "leaders")
    half = samples[(samples["bin"] == -1) & (samples["budget_label"] == "0.5")]
    assert set(half["k"]) == {1, 2}
    assert (half["n_missing_full"] == 12).all()
    assert half["difference"].tolist() == pytest.approx([-1 / 28] * len(half))
    assert (half["twin_pass_at_k"] == 1).all()
    assert set(leading["full_mean"]) == {1.0}


def test_other_k_can_be_asked_for(kvx: Kvx) -> None:
    write_experiment(failing(), *SAMPLED, choose=by_seed)
    assert kvx("score").code == 0
    found = kvx("analyze", "analyze.pass_at=[3,9]")
    assert found.code == 0
    assert "analyze.pass_at=[9]: left out, pass@9 needs as many seeds" in found.err
    assert "no point has more than 3" in found.err
    samples = pq.read_table(FOLDER / "samples.parquet").to_pandas()
    assert set(samples["k"]) == {1, 3}
    # kvpress's folders have no seed in their names
    assert kvx("export", "export.formats=[kvpress]").code == 0
    folders = sorted(p.parent for p in FOLDER.glob("export/kvpress/*/*/config.yaml"))
    assert len(folders) == 3 * 2
    for seed in range(3):
        own = [f for f in folders if f.parent.name == f"seed={seed}"]
        assert len(own) == 2
        assert all(f"seed: {seed}\n" in (f / "config.yaml").read_text() for f in own)


def test_configurations_of_a_family_share_an_error_rate(kvx: Kvx) -> None:
    write_experiment(failing(), *SAMPLED, "press=knorm,tova", choose=by_seed)
    assert kvx("score").code == 0
    for family, tests in ("experiment", 2), ("curve", 1):
        assert kvx("analyze", f"analyze.family={family}").code == 0
        samples = pq.read_table(FOLDER / "samples.parquet").to_pandas()
        once = samples[(samples["bin"] == -1) & (samples["k"] == 1)].dropna(subset="p")
        assert len(once) == 2
        assert once["p_holm"].to_list() == pytest.approx((tests * once["p"]).to_list())


def test_greedy_seeds_are_one_sample(kvx: Kvx) -> None:
    write_experiment(failing(range(5)), "seed=0,1")
    (samples,) = tables(kvx, "samples")
    assert set(samples["variance_within"]) == {0.0}
    report = (FOLDER / "details.md").read_text()
    assert "Decoding is greedy and no score differs between seeds in 2 of 2" in report


def test_one_seed_has_no_samples(kvx: Kvx) -> None:
    write_experiment(failing(range(5)))
    samples, numerics = tables(kvx, "samples", "numerics")
    assert len(samples) == 0
    assert len(numerics) == 0
    assert "## Samples" not in (FOLDER / "details.md").read_text()


def test_differences_within_rounding_are_noise(kvx: Kvx) -> None:
    """Two dtypes flip 4 full-cache answers; a press that loses one lies within that."""

    def by_dtype(point: Point) -> AnswerOf:
        if point.config.model.dtype == "float32":
            return failing(range(1))
        return lambda number, budget: (
            "Nora, and Ivo" if number in (5, 15, 25, 35) else "Nora",
            [1, 0],
            "stop",
        )

    write_experiment(failing(), "model.dtype=float32,bfloat16", choose=by_dtype)
    (numerics,) = tables(kvx, "numerics")
    assert pq.read_schema(FOLDER / "numerics.parquet").remove_metadata() == schemas.NUMERICS
    overall = numerics[numerics["bin"] == -1]
    assert len(overall) == 1
    row = overall.iloc[0]
    assert (row["n_differ"], row["n_pairs"]) == (4, 40)
    assert row["floor"] == pytest.approx(4 / 40)  # all one way: the shift itself
    assert "model.dtype" in row["differs_in"]
    report = (FOLDER / "details.md").read_text()
    assert (
        "changes the score of 4 of 40 full-cache answers and moves a mean by up to 0.100" in report
    )
    assert "Noise by this: knorm at 0.5" in report


def test_time_outs_are_no_rounding(kvx: Kvx) -> None:
    """Six answers of the float32 full cache are late, two of another dtype are wrong."""

    def by_dtype(point: Point) -> AnswerOf:
        exact = point.config.model.dtype == "float32"

        def answer(number: int, budget: float) -> Answer:
            if exact and number < 6:
                return "", None, FailureType.TIMEOUT
            wrong = not exact and number in (10, 30)
            return "Nora, and Ivo" if wrong else "Nora met Ivo", [1, 0], "stop"

        return answer

    write_experiment(failing(), "budget=1.0", "model.dtype=float32,bfloat16", choose=by_dtype)
    assert kvx("score").code == 0
    assert kvx("analyze").code == 0
    numerics = pq.read_table(FOLDER / "numerics.parquet").to_pandas()
    row = numerics[numerics["bin"] == -1].iloc[0]
    assert (row["n_differ"], row["n_pairs"]) == (2, 34)
    assert row["floor"] == pytest.approx(1.959964 * 2**0.5 / 34)  # random signs


def test_other_models_and_requests_are_no_rounding() -> None:
    for name in ("engine.model", "engine.api", "engine.extra_body.keep", "engine.omit"):
        assert name not in ROUNDING
    made = {"engine": {"model": "small", "max_rows": 8}, "model": {"dtype": "float32"}}
    other = {"engine": {"model": "big", "max_rows": 8}, "model": {"dtype": "float32"}}
    batches = {"engine": {"model": "small", "max_rows": 1}, "model": {"dtype": "bfloat16"}}
    one, two, three = (
        apart_from_rounding(
            PointRecord(
                Path(),
                {"config": c, "manifest": {"sha256": "m"}, "model_hash": "h"},
                Done(0, 0, {}, 0, "", {}),
            )
        )
        for c in (made, other, batches)
    )
    assert one == three
    assert one != two


def test_a_clear_loss_is_no_noise() -> None:
    numerics = pd.DataFrame(
        [{"bin": -1, "n_differ": 9, "n_pairs": 40, "floor": 0.2, "differs_in": "model.dtype: a | b",
          "variant_a": "v", "variant_b": "w"}]
    )  # fmt: skip
    points = [("knorm", 0.15, 0.01), ("tova", 0.1, 0.2), ("random", 0.3, 0.001)]
    losses = pd.DataFrame(
        [{"point_id": press, "press": press, "budget_label": "0.5", "variant_id": "v", "bin": -1,
          "loss": loss} for press, loss, _ in points]
    )  # fmt: skip
    tests = pd.DataFrame(
        [{"point_id": press, "bin": -1, "primary": True, "p": p} for press, _, p in points]
    )
    (only,) = noise(numerics, losses, tests, 0.05)
    assert only.endswith("smaller differences are noise. Noise by this: tova at 0.5.")
