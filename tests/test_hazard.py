"""The hazard model: fitting, calibration, its files, and what is refused."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.errors import UserError
from kvx.guard import features
from kvx.guard.calibration import probability
from kvx.guard.hazard import CARD, DEFAULT, MODEL, HazardModel, in_lines
from kvx.learning.calibrating import fit_isotonic, fit_platt
from kvx.learning.fitting import OPERATING_POINTS, Examples, FitSettings, fit, threshold_at

NAMES = ("signal", "noise", "missing")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


def examples(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3)).astype(np.float32)
    x[rng.random(n) < 0.3, 2] = np.nan
    return Examples(x, rng.random(n) < 1 / (1 + np.exp(4 - 2 * x[:, 0])))


@pytest.fixture(scope="module")
def model():
    found = fit(examples(4000, 0), examples(4000, 1), NAMES, 32, FitSettings(rounds=100))
    limits = {name: {"hazard": 0.1} for name in OPERATING_POINTS}
    return found.with_card(thresholds=limits)


@pytest.fixture
def folder(model, tmp_path):
    for name, content in model.files().items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_hazards_are_probabilities_though_the_classes_were_weighted(model):
    fresh = examples(20_000, 2)
    p = model.predict(fresh.features)
    assert p.dtype == np.float32
    assert ((p >= 0) & (p <= 1)).all()
    assert p.mean() == pytest.approx(fresh.positive.mean(), abs=0.01)
    for low, high in ((0.0, 0.05), (0.05, 0.2), (0.2, 0.6)):
        rows = (p >= low) & (p < high)
        assert fresh.positive[rows].mean() == pytest.approx(p[rows].mean(), abs=0.05)


def test_the_same_data_give_the_same_model(model):
    again = fit(examples(4000, 0), examples(4000, 1), NAMES, 32, FitSettings(rounds=100))
    assert again.files()[MODEL] == model.files()[MODEL]


def test_a_row_has_the_hazard_it_has_alone(model):
    x = examples(50, 3).features
    alone = np.concatenate([model.predict(x[i : i + 1]) for i in range(50)])
    assert alone.tobytes() == model.predict(x).tobytes()


def test_the_model_of_the_package_is_whole_and_small():
    model = HazardModel.load(DEFAULT, features.SETS["full"])
    assert model.card["experiment"] == "guard_study"
    assert sum(file.stat().st_size for file in DEFAULT.iterdir()) < 3 * 2**20
    hazard = model.predict(np.zeros((3, len(model.names)), np.float32))
    assert ((hazard > 0) & (hazard < 1)).all()
    points = [model.threshold(name) for name in ("conservative", "balanced", "aggressive")]
    assert points == sorted(points, reverse=True)


def test_a_saved_model_is_the_same(model, folder):
    loaded = HazardModel.load(folder, NAMES)
    x = examples(100, 4).features
    assert loaded.predict(x).tobytes() == model.predict(x).tobytes()
    assert (loaded.horizon, loaded.names, loaded.threshold("balanced")) == (32, NAMES, 0.1)
    assert json.loads((folder / MODEL).read_text())["learner"]  # XGBoost's JSON


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("signal", "noise"), "not the 2 asked"),
        (("signal", "noise", "other"), "lacks other"),
        (("noise", "signal", "missing"), "another order"),
    ],
)
def test_a_card_with_other_features_is_refused(folder, asked, said):
    with pytest.raises(UserError, match=said) as error:
        HazardModel.load(folder, asked)
    assert "\n" not in str(error.value)


def break_card(folder, **changes):
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps({**card, **changes}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / MODEL).write_bytes(b"{"), "not the model"),
        (lambda f: (f / MODEL).unlink(), "no hazard model"),
        (lambda f: (f / CARD).unlink(), "no hazard model"),
        (lambda f: (f / CARD).write_text("{"), "no card"),
        (lambda f: (f / CARD).write_text("[1]"), "no card"),
        (lambda f: (f / CARD).write_bytes(b"\xff\xfe"), "no hazard model"),
        (lambda f: break_card(f, format=99), "format 99"),
        (lambda f: break_card(f, features={"names": None}), "lacks names"),
    ],
)
def test_damaged_files_are_refused_in_one_line(folder, damage, said):
    damage(folder)
    with pytest.raises(UserError, match=said) as error:
        HazardModel.load(folder)
    assert "\n" not in str(error.value)
    assert "kvx.train" in str(error.value)


@given(JSON)
def test_a_card_in_lines_says_the_same(value):
    assert json.loads(in_lines(value)) == value


def test_a_card_has_a_line_per_row_of_its_tables():
    card = {"names": ["a", "b"], "rows": [{"x": 1, "y": None}, {"x": 2, "y": 0.5}], "none": []}
    assert in_lines(card).splitlines() == [
        "{", ' "names": ["a", "b"],', ' "rows": [', '  {"x": 1, "y": null},',
        '  {"x": 2, "y": 0.5}', " ],", ' "none": []', "}",
    ]  # fmt: skip


def test_a_side_without_catastrophes_is_refused():
    sound = Examples(np.zeros((10, 3), np.float32), np.zeros(10, bool))
    with pytest.raises(ValueError, match="validation"):
        fit(examples(500, 0), sound, NAMES, 32, FitSettings())


@given(
    st.lists(st.floats(0, 1, width=32), min_size=1, max_size=60), st.sampled_from([0.01, 0.05, 0.1])
)
def test_no_more_sound_traces_than_allowed_reach_the_threshold(scores, rate):
    limit = threshold_at(scores, rate)
    x = np.array(scores, np.float32)
    assert (x >= limit).mean() <= rate
    lower = x[x < limit]
    assert (x >= lower.max()).mean() > rate  # the next lower score would be too low


@given(st.lists(st.tuples(st.floats(-6, 6), st.booleans()), min_size=4, max_size=80))
def test_calibrations_never_turn_a_ranking_around(rows):
    score = np.array([s for s, _ in rows])
    label = np.array([p for _, p in rows])
    for fitted in (fit_platt(score, label), fit_isotonic(score, label)):
        assert json.loads(json.dumps(fitted)) == fitted
        p = probability(fitted, np.sort(score))
        assert ((p >= 0) & (p <= 1)).all()
        assert (np.diff(p) >= -1e-7).all()
