"""How a sweep's cost grows with the number of points and the length of the prompt.

    python scripts/bench_growth.py

Prints a Markdown table: seconds per example of kvx (several examples together), and of kvpress's
own pipeline. kvpress runs point after point, so its time is measured on 12 points of one example
and scaled by their number.
"""

import argparse
import dataclasses
import logging
import tempfile
from functools import partial
from pathlib import Path

import torch
from sweep_runs import BUDGETS, build_work, run_kvpress, run_kvx, timed

from kvx.engines.base import PointWork
from kvx.engines.kvpress.account import RowCost
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.model import load


def first(work: list[PointWork], n: int) -> list[PointWork]:
    """The first `n` examples of every point."""
    return [PointWork(item.point, item.requests[:n]) for item in work]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--points", type=int, nargs="+", default=sorted(BUDGETS))
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--max-rows", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    logging.getLogger("kvpress").setLevel(logging.ERROR)
    print("| prompt tokens | points | kvpress s | kvx s | ratio |\n|---|---|---|---|---|")
    for tokens in args.tokens:
        per_point = None
        for points in args.points:
            args_now = argparse.Namespace(**{**vars(args), "tokens": tokens, "points": points})
            with tempfile.TemporaryDirectory() as folder:
                work = build_work(args_now, Path(folder))
                config = work[0].point.config
                loaded = dataclasses.replace(load(config.model), stop_ids=frozenset())
                loaded.model.generation_config.eos_token_id = [-1]
                loaded.set_attention("sdpa")
                cost = RowCost(
                    layers_of(loaded.model).entry_bytes, 4 * loaded.model.config.vocab_size
                )
                run_kvx(loaded, first(work[:2], 1), cost)  # warm
                if per_point is None:
                    one = first(work, 1)
                    theirs = partial(run_kvpress, loaded, one, args.new_tokens)
                    seconds = timed(loaded, theirs).seconds
                    per_point = seconds / len(work)
                seconds = timed(loaded, partial(run_kvx, loaded, work, cost)).seconds
            ours, expected = seconds / args.examples, per_point * points
            print(
                f"| {tokens} | {points} | {expected:.1f} | {ours:.2f} | {expected / ours:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
