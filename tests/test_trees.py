"""Trees as arrays say what XGBoost says."""

import numpy as np
import pytest
import xgboost as xgb
from numpy.typing import NDArray

from kvx.guard.hazard import DEFAULT, HazardModel
from kvx.guard.trees import Trees


def fitted(
    depth: int, rounds: int, missing: float, rare: bool = False, gamma: float = 0.0
) -> xgb.Booster:
    """Trees on random numbers, of which some are missing."""
    rng = np.random.default_rng(depth)
    x = rng.normal(size=(600, 7)).astype(np.float32)
    x[rng.random(x.shape) < missing] = np.nan
    y = np.nansum(x[:, :3], axis=1) + rng.normal(size=600) > (3.0 if rare else 0.0)
    settings = {"objective": "binary:logistic", "max_depth": depth, "eta": 0.3, "nthread": 1}
    settings["gamma"] = gamma
    return xgb.train(settings, xgb.DMatrix(x, label=y), rounds)


MODELS = {
    "packaged": lambda: HazardModel.load(DEFAULT).booster,
    "deep": lambda: fitted(0, 20, 0.0),  # as deep as it gets
    "with what is missing": lambda: fitted(4, 60, 0.3),
    "stumps of a rare class": lambda: fitted(1, 5, 0.1, rare=True),
    "nothing but leaves": lambda: fitted(3, 3, 0.0, gamma=1e6),
    "cut short": lambda: fitted(3, 30, 0.1)[:7],
}


def rows_at_the_edges(booster: xgb.Booster, n: int) -> NDArray[np.float32]:
    """Rows [n, features] of the very numbers that trees split at, of nan and of infinities."""
    splits = booster.trees_to_dataframe()["Split"].dropna().to_numpy(np.float32)
    numbers = np.concatenate([splits, np.nextafter(splits, np.float32(np.inf))])
    numbers = np.concatenate([numbers, np.float32([np.nan, 0, -0.0, np.inf, -np.inf, 1e-30])])
    rng = np.random.default_rng(0)
    return rng.choice(numbers, size=(n, booster.num_features())).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_trees_as_arrays_are_the_boosters(name: str) -> None:
    booster = MODELS[name]()
    trees = Trees(booster)
    for n in (1, 2, 17, 300):
        features = rows_at_the_edges(booster, n)
        expected = booster.inplace_predict(features, predict_type="margin")
        features = features[:, trees.columns]
        np.testing.assert_allclose(trees.margin(features), expected, rtol=0, atol=1e-6)
        alone = [trees.margin(features[i : i + 1]) for i in range(n)]
        assert np.concatenate(alone).tobytes() == trees.margin(features).tobytes()
    assert trees.margin(features[:0]).shape == (0,)
