"""What the live guard costs while nothing happens: its share of a decode step.

    python scripts/bench_live_guard.py --rows 1,16 [--out overhead.json]

Rows of real prompts decode under `controller=balanced`, whose alarms are off by a threshold
that no hazard reaches; every call of the guard and every step is timed. The guard and the step are
timed in the same run, so a busy machine slows both.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from kvx.cli.command import compose
from kvx.data.frozen_examples import load_examples
from kvx.engines.base import PointWork
from kvx.engines.kvpress import batch
from kvx.engines.kvpress.decode import Decoder
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.guarded import LiveGuard
from kvx.engines.kvpress.sequence import Action, Row
from kvx.points import Point, Request
from kvx.prepare.build import ensure_manifest

NEVER = ("controller.tau_high=1.0", "controller.tau_low=1.0", "controller.on_loop=false")


class Timed(LiveGuard):
    """The live guard with a clock around it."""

    spent: ClassVar[list[float]] = []

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Action]:
        if logits.is_cuda:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        actions = super().on_step(rows, logits, tokens)
        self.spent.append(time.perf_counter() - begun)
        return actions


def work(options: argparse.Namespace, folder: str, rows: int) -> PointWork:
    config = compose(
        f"paths.output={folder}",
        f"model={options.model}",
        "dataset=narrativeqa_stories",
        "press=knorm",
        "budget.ratio=0.5",
        "prompt.query_aware=true",
        "controller=balanced",
        "controller.prefill_gate_nats=1000",
        *NEVER,
        "signals=off",
        f"decoding.max_new_tokens={options.tokens}",
        f"dataset.sampling.n_per_bin={rows}",
        "dataset.binning.n_bins=1",
    )
    manifest, manifest_dir = ensure_manifest(config)
    point, examples = Point(config, manifest, manifest_dir), load_examples(manifest_dir)
    entries = manifest.entries[:rows]
    return PointWork(point, tuple((Request(point, e), examples[e.example_id]) for e in entries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", default="1,16")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="also write what is printed here, as JSON")
    options = parser.parse_args()
    found = []
    batch.LiveGuard = Timed  # type: ignore[misc]
    for rows in (int(n) for n in options.rows.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            item = work(options, folder, rows)
            engine = KVPressEngine(item.point.config)
            steps = timed_steps(engine, item, rows)
        guard = statistics.median(Timed.spent)
        step = statistics.median(steps)
        found.append({"rows": rows, "steps": len(steps), "step_s": step, "guard_s": guard})
        print(
            f"{rows:3d} rows: step {1000 * step:.1f} ms, guard {1000 * guard:.2f} ms = "
            f"{100 * guard / (step - guard):.1f}% of a step without it ({len(steps)} steps)"
        )
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def timed_steps(engine: KVPressEngine, item: PointWork, rows: int) -> list[float]:
    """Seconds of the steps at which all rows were running."""
    found: list[float] = []
    Timed.spent.clear()
    step = Decoder.step

    def watched(self: Any) -> list[Row]:
        full = len(self.rows) == rows
        begun, before = time.perf_counter(), len(Timed.spent)
        finished = step(self)
        if full:
            found.append(time.perf_counter() - begun)
        else:
            del Timed.spent[before:]
        return finished

    Decoder.step = watched  # type: ignore[method-assign]
    try:
        for _ in engine.generate([item]):
            pass
    finally:
        Decoder.step = step  # type: ignore[method-assign]
    del Timed.spent[: max(0, len(Timed.spent) - len(found))]
    return found


if __name__ == "__main__":
    main()
