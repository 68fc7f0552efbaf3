"""What recording signals costs: the decode step of the engine with signals off, light and full.

    python scripts/bench_signals.py                  # SmolLM2, batches of 1, 16 and 76 rows
    python scripts/bench_signals.py --rows 16 --new-tokens 64 --rounds 5

Rows of one example at several budgets are decoded without end tokens; the time of a step (TPOT of
each row) is the median over the steps of a round, and modes take turns within a round, so that a
host whose speed varies tells the same of each. Probe and evicted score mass belong to the prefill:
what they cost is seen in the time until the first token.
"""

import argparse
import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence

import torch

from kvx.cli.command import compose
from kvx.config.schema import Config, Signals
from kvx.data.frozen_examples import load_examples
from kvx.engines.base import PointWork
from kvx.engines.kvpress.batch import Batch
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.sequence import Action, Prefill, Row, StepObserver
from kvx.points import Point, Request
from kvx.prepare.build import ensure_manifest


class Clock(StepObserver):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_prefill(self, rows: Sequence[Row], prefills: Sequence[Prefill]) -> Sequence[Action]:
        for row in rows:
            row.ignore_stop = True
        return ()

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Action]:
        self.times.append(time.perf_counter())
        return ()


def timed(engine: KVPressEngine, work: list[PointWork], signals: Signals) -> tuple[float, float]:
    """Seconds until the first tokens, and per step."""
    config = dataclasses.replace(work[0].point.config, signals=signals)
    batch = Batch(engine.loaded, config, engine.account())
    clock = Clock()
    batch.observers.append(clock)
    start = time.perf_counter()
    responses = list(batch.run(work))
    assert len(responses) == sum(len(item.requests) for item in work)
    times = clock.times
    steps = [after - before for before, after in itertools.pairwise(times)]
    return times[0] - start, statistics.median(steps)


def works(config: Config, n_rows: int) -> list[PointWork]:
    """One example at `n_rows` budgets."""
    manifest, folder = ensure_manifest(config)
    entry, examples = manifest.entries[0], load_examples(folder)
    found = []
    for i in range(n_rows):
        budget = dataclasses.replace(config.budget, ratio=round(0.2 + 0.6 * i / n_rows, 4))
        point = Point(dataclasses.replace(config, budget=budget), manifest, folder)
        found.append(PointWork(point, ((Request(point, entry), examples[entry.example_id]),)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dataset", default="niah")
    parser.add_argument("--press", default="snapkv")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 76])
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = compose(
            f"paths.output={folder}",
            f"model={asked.model}",
            f"dataset={asked.dataset}",
            f"press={asked.press}",
            f"decoding.max_new_tokens={asked.new_tokens}",
            "dataset.binning.n_bins=1",
            "dataset.sampling.n_per_bin=1",
        )
        engine = KVPressEngine(config)
        for rows in asked.rows:
            work = works(config, rows)
            timed(engine, work, Signals.full)  # warm
            found: dict[Signals, list[tuple[float, float]]] = {mode: [] for mode in Signals}
            for _ in range(asked.rounds):
                for mode in Signals:
                    found[mode].append(timed(engine, work, mode))
            for mode in Signals:
                pairs = list(zip(found[mode], found[Signals.off], strict=True))
                step = statistics.median(step for _, step in found[mode])
                more = [a[1] / b[1] - 1 for a, b in pairs]
                first = [a[0] / b[0] - 1 for a, b in pairs]
                print(
                    f"{rows:3d} rows, signals={mode.value:5s}: {1000 * step:7.2f} ms per step, "
                    f"{statistics.median(more):+.1%} ({min(more):+.1%} to {max(more):+.1%}); "
                    f"until the first token {statistics.median(first):+.1%}"
                )


if __name__ == "__main__":
    main()
