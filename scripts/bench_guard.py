"""What the guard costs per generated token: features and hazard, for rows that decode together.

    python scripts/bench_guard.py [--rows 16] [--steps 400] [--model FOLDER]

Without a model, one of 300 trees is fitted on random signals: only its size matters.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from synthetic import random_traces

from kvx.guard.features import SETS, FeatureState, build, names_of
from kvx.guard.hazard import HazardModel
from kvx.learning.fitting import Examples, FitSettings, fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    traces = random_traces([arguments.steps] * arguments.rows, 0)
    chosen = {arguments.model.name: None} if arguments.model else dict.fromkeys(SETS)
    for name in chosen:
        model = HazardModel.load(arguments.model) if arguments.model else _fitted(names_of(name))
        features_ms, predict_ms = _measure(traces, model, arguments.rows, arguments.steps)
        total = np.array(features_ms) + np.array(predict_ms)
        per_token, late = np.median(total) / arguments.rows, np.quantile(total, 0.95)
        print(
            f"{name}: {len(model.trees.columns)} of {len(model.names)} features, "
            f"{model.card['trees']} trees; per step of {arguments.rows} rows: features "
            f"{np.median(features_ms):.3f} ms, hazard {np.median(predict_ms):.3f} ms; "
            f"per token {per_token:.4f} ms (p95 {late / arguments.rows:.4f})"
        )


def _fitted(names: tuple[str, ...]) -> HazardModel:
    traces = random_traces([100] * 40, 1)
    features = build(traces, names)
    label = np.random.default_rng(0).random(len(features)) < 0.2
    examples = Examples(features, label)
    return fit(examples, examples, names, 32, FitSettings(rounds=300, patience=300))


def _measure(traces, model, rows, steps):
    state = FeatureState([model.names[column] for column in model.trees.columns])
    state.add(traces.prefill)
    first, features_ms, predict_ms = traces.starts[:-1], [], []
    for t in range(steps):
        signals = {name: values[first + t] for name, values in traces.signals.items()}
        a = time.perf_counter()
        features = state.step(signals)
        b = time.perf_counter()
        model.hazard(model.trees.margin(features))
        predict_ms.append(1000 * (time.perf_counter() - b))
        features_ms.append(1000 * (b - a))
    return features_ms[20:], predict_ms[20:]


if __name__ == "__main__":
    main()
