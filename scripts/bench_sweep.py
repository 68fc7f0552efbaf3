"""What a sweep costs: kvpress's own pipeline, point by point, against kvx's shared run.

Both answer the same examples at the same points in the same process, alternating, several times.
kvpress is given what a user would give it: the model is loaded once and stays warm. Every request
generates exactly `--new-tokens` tokens, so that both do the same work.

    python scripts/bench_sweep.py                               # 24 points, SmolLM2, ~1k tokens
    python scripts/bench_sweep.py --points 48
    python scripts/bench_sweep.py --shape 7b --dtype bfloat16 --device cuda     # random weights
    python scripts/bench_sweep.py --shape hybrid     # one layer in six full, random weights

The hybrid has SmolLM2's shape and windows of 512 tokens in the other layers; kvx also runs there
one request at a time (`engine.share=false`), and kvpress compresses the full layers
(`mixed_layers.py`).

Prints the ratio, whether all tokens are equal, peak memory against its bound, and the floor: one
prefill of each example, the question for each row, and per step the weights and the live KV cache
read once at the measured bandwidth.
"""

import argparse
import dataclasses
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mixed_layers
import torch
from sweep_runs import BUDGETS, SHAPES, build_work, random_model, run_kvpress, run_kvx, timed

from kvx.data.prompt import PromptBuilder
from kvx.engines.base import PointWork
from kvx.engines.kvpress.account import RowCost
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.measure import synchronize
from kvx.engines.kvpress.model import LoadedModel, load


def bandwidth(device: torch.device) -> float:
    """Bytes per second of reading memory once, the best of a few tries."""
    data = torch.ones(100_000_000, device=device)
    best = float("inf")
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        data.sum().item()
        best = min(best, time.perf_counter() - start)
    return data.numel() * 4 / best


def best_of(device: torch.device, run: Callable[[], object], n: int = 3) -> float:
    best = float("inf")
    for _ in range(n):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return best


@torch.inference_mode()
def floor_s(loaded: LoadedModel, work: list[PointWork], new_tokens: int) -> dict[str, float]:
    """What no implementation with these forward passes could go below, for all examples."""
    model, device = loaded.model, loaded.device
    builder = PromptBuilder(loaded.tokenizer, work[0].point.config)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    prefill = question = kv = 0.0
    for index, (request, example) in enumerate(work[0].requests):
        parts = builder.parts(example)
        ids = torch.tensor([parts.compressed_ids], device=device)
        rest = torch.tensor([parts.rest_ids] * len(work), device=device)
        prefill += best_of(device, lambda ids=ids: model.model(input_ids=ids))  # type: ignore[misc]
        question += best_of(device, lambda rest=rest: model.model(input_ids=rest))  # type: ignore[misc]
        entry = layers_of(model).entry_bytes
        n = request.entry.compressed_tokens
        for item in work:
            held = item.point.kept_tokens(n) + len(parts.rest_ids) + new_tokens / 2
            kv += held * entry
        assert item.requests[index][1] is example
    speed = bandwidth(device)
    examples = len(work[0].requests)
    steps = (new_tokens - 1) * (weights * examples + kv) / speed
    return {
        "prefill_s": prefill,
        "question_s": question,
        "steps_s": steps,
        "bandwidth_gb_s": speed / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--points", type=int, default=24, choices=sorted(BUDGETS))
    parser.add_argument("--tokens", type=int, default=1024, help="prompt tokens, about")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max-rows", type=int, default=256)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32")
    shapes = [*sorted(SHAPES), "hybrid"]
    parser.add_argument("--shape", choices=shapes, help="random weights of this shape")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    logging.getLogger("kvpress").setLevel(logging.ERROR)

    with tempfile.TemporaryDirectory() as folder:
        work = build_work(args, Path(folder))
        figures = (mixed_layers.compare if args.shape == "hybrid" else compare)(args, work)
    print(json.dumps(figures, indent=1))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


@torch.inference_mode()
def compare(args: argparse.Namespace, work: list[PointWork]) -> dict[str, Any]:
    config = work[0].point.config
    loaded = random_model(config, args.shape) if args.shape else load(config.model)
    loaded = dataclasses.replace(loaded, stop_ids=frozenset())
    loaded.model.generation_config.eos_token_id = [-1]
    loaded.set_attention("sdpa")
    layers = layers_of(loaded.model)
    entry = layers.entry_bytes
    cost = RowCost(entry, 4 * loaded.model.config.vocab_size, layers=layers)
    short = [PointWork(w.point, w.requests[:1]) for w in work[:2]]
    run_kvpress(loaded, short, 2)
    run_kvx(loaded, short, cost)

    theirs, ours, equal, peaks = [], [], True, ([], [])  # type: ignore[var-annotated]
    for _ in range(args.repeats):
        kvx = timed(loaded, lambda: run_kvx(loaded, work, cost))
        kvpress = timed(loaded, lambda: run_kvpress(loaded, work, args.new_tokens))
        theirs.append(kvpress.seconds)
        ours.append(kvx.seconds)
        peaks[0].append(kvpress.peak_bytes)
        peaks[1].append(kvx.peak_bytes)
        expected, answers = kvpress.answers, kvx.answers
        differing = [key for key in expected if answers[key] != expected[key]]
        equal = equal and not differing
        print(
            f"kvpress {theirs[-1]:.2f} s, kvx {ours[-1]:.2f} s, ratio {theirs[-1] / ours[-1]:.1f}, "
            f"{len(expected) - len(differing)}/{len(expected)} responses equal",
            flush=True,
        )

    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    full, live = memory_bound(work, entry, args.max_rows)
    floor = floor_s(loaded, work, args.new_tokens)
    total = floor["prefill_s"] + floor["question_s"] + floor["steps_s"]
    name = torch.cuda.get_device_name() if loaded.device.type == "cuda" else "cpu"
    return {
        "device": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "model": args.shape or config.model.name, "dtype": args.dtype, "points": len(work),
        "examples": args.examples, "new_tokens": args.new_tokens,
        "prompt_tokens_mean": statistics.fmean(r.entry.prompt_tokens for r, _ in work[0].requests),
        "kvpress_s": theirs, "kvx_s": ours,
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "all_tokens_equal": equal,
        "peak_bytes_kvpress": max(peaks[0]), "peak_bytes_kvx": max(peaks[1]),
        "peak_bound_bytes": round(full + live + 0.1 * (weights + full + live)),
        "weights_bytes": weights, "full_kv_bytes": full, "live_kv_bytes": live,
        "floor_s": total, "floor_parts": floor,
        "ratio_of_the_floor": statistics.median(theirs) / total,
        "times_the_floor": statistics.median(ours) / total,
    }  # fmt: skip


def memory_bound(work: list[PointWork], entry: int, max_rows: int) -> tuple[int, int]:
    """Bytes of one full KV cache, and of the caches of the rows that may run at once."""
    per_example = []
    for index, (request, _) in enumerate(work[0].requests):
        prompt, n = request.entry.prompt_tokens, request.entry.compressed_tokens
        rows = [w.point.kept_tokens(n) + prompt - n for w in work]
        new = work[0].point.config.decoding.max_new_tokens
        per_example.append(sum(rows) + new * len(rows))
        assert work[-1].requests[index][0].entry.example_id == request.entry.example_id
    at_once = max(1, max_rows // len(work))
    full = max(r.entry.prompt_tokens for r, _ in work[0].requests) * entry
    return full, sum(sorted(per_example)[-at_once:]) * entry


if __name__ == "__main__":
    main()
