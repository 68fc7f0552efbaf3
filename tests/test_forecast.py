"""Hazards while rows come, wait, return and go are those of their traces alone."""

import random
from typing import Any

import numpy as np
import pytest
from synthetic import random_traces

from kvx.guard.features import build, names_of
from kvx.guard.forecast import Forecaster
from kvx.guard.hazard import DEFAULT, HazardModel
from kvx.guard.trace_arrays import Traces
from kvx.learning.fitting import Examples, FitSettings, fit


def known(traces: Traces, row: int) -> dict[str, Any]:
    return {name: values[row] for name, values in traces.prefill.items()}


def every_feature() -> HazardModel:
    """Trees on noise, which ask for everything."""
    names = names_of("full")
    features = build(random_traces([60] * 60, 5), names)
    examples = Examples(features, np.random.default_rng(1).random(len(features)) < 0.5)
    model = fit(examples, examples, names, 32, FitSettings(rounds=150, patience=150, max_depth=5))
    assert len(model.booster.get_score()) > 80
    return model


@pytest.mark.parametrize("packaged", [True, False])
def test_hazards_are_those_of_the_trace_alone(packaged: bool) -> None:
    model = HazardModel.load(DEFAULT) if packaged else every_feature()
    traces = random_traces([50, 80, 1, 33, 70, 64], 3)
    expected = model.predict(build(traces, model.names))
    draw = random.Random(0)
    forecaster = Forecaster(model)
    at: dict[int, int] = {}  # by row, how many tokens it has
    waiting, ended = list(range(6)), 0
    while waiting or at:
        if waiting and draw.random() < 0.2:
            row = waiting.pop()
            forecaster.add(row, known(traces, row))
            at[row] = 0
        if at and draw.random() < 0.02 * len(at):  # taken back; it says the same again
            row = draw.choice(list(at))
            at[row] = draw.randint(0, at[row])
            forecaster.rewind(row, at[row], known(traces, row))
        rows = [row for row in at if draw.random() < 0.8]
        draw.shuffle(rows)
        if not rows:
            continue
        tokens = traces.starts[rows] + np.array([at[row] for row in rows])
        signals = {name: traces.signals[name][tokens] for name in forecaster.needs}
        found = forecaster.step(rows, signals)
        np.testing.assert_allclose(found, expected[tokens], rtol=0, atol=1e-6)
        for row in rows:
            at[row] += 1
        over = [row for row in rows if at[row] == traces.lengths[row]]
        forecaster.forget(over)
        ended += len(over)
        for row in over:
            del at[row]
    assert ended == 6
