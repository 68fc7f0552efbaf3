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
import contextlib
import dataclasses
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mixed_layers
import torch
from kvpress import KVPressTextGenerationPipeline
from transformers import LlamaConfig, LlamaForCausalLM

from kvx.cli.command import compose
from kvx.config.schema import Config
from kvx.data.frozen_examples import load_examples
from kvx.data.prompt import PromptBuilder
from kvx.data.tokenizer import load_tokenizer
from kvx.engines.base import PointWork, Response
from kvx.engines.kvpress import admission
from kvx.engines.kvpress.account import Account, RowCost
from kvx.engines.kvpress.batch import Batch
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.measure import PeakMemory, synchronize
from kvx.engines.kvpress.model import LoadedModel, load, resolve_device
from kvx.engines.kvpress.press import PointPress
from kvx.engines.kvpress.transformers_versions import kvpress_hooks
from kvx.points import Point, Request
from kvx.prepare.build import ensure_manifest

PRESSES = ("snapkv", "streaming", "knorm", "tova", "expected_attention", "keydiff")
BUDGETS = {24: (0.75, 0.5, 0.25, 0.125)}
BUDGETS[48] = (0.9, 0.75, 0.6, 0.5, 0.4, 0.25, 0.2, 0.125)
BUDGETS[12] = (0.5, 0.125)
SHAPES: dict[str, dict[str, int]] = {
    "7b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 49152,
    },
    "1b": {
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 49152,
    },
}


def random_model(config: Config, shape: str) -> LoadedModel:
    """A Llama of a known shape with random weights: its speed is real, its answers are not."""
    device = resolve_device(config.model.device)
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(
            LlamaConfig(**SHAPES[shape], max_position_embeddings=32768, dtype=config.model.dtype)
        ).to(getattr(torch, config.model.dtype))
    model.eval()
    return LoadedModel(model, load_tokenizer(config.model), device, frozenset())


def build_work(args: argparse.Namespace, folder: Path) -> list[PointWork]:
    words = int(args.tokens * 0.72)
    common = [
        f"paths.output={folder}", "dataset=niah", "model=smollm2", f"model.dtype={args.dtype}",
        f"model.device={args.device}", "dataset.source.n_examples=40",
        f"dataset.source.min_words={words}", f"dataset.source.max_words={words + 60}",
        "dataset.binning.n_bins=1", f"dataset.sampling.n_per_bin={args.examples}",
        f"decoding.max_new_tokens={args.new_tokens}", f"engine.max_rows={args.max_rows}",
        "signals=off",
    ]  # fmt: skip
    work = []
    for press in PRESSES:
        for budget in BUDGETS[args.points]:
            config = compose(*common, f"press={press}", f"budget={budget}")
            point = Point(config, *ensure_manifest(config))
            examples = load_examples(point.manifest_dir)
            requests = [Request(point, entry) for entry in point.manifest.entries]
            work.append(
                PointWork(point, tuple((r, examples[r.entry.example_id]) for r in requests))
            )
    return work


class Recorder:
    """Stands before kvpress's tokenizer to see the token ids that it turns into text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.ids = tokenizer, []  # type: ignore[var-annotated]

    def decode(self, ids: torch.Tensor, **kwargs: Any) -> str:
        self.ids = ids.tolist()
        return str(self.tokenizer.decode(ids, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def run_kvpress(loaded: LoadedModel, work: list[PointWork], new_tokens: int) -> dict[str, Any]:
    """kvpress's pipeline, one point after another, as its own evaluation runs it."""
    pipeline = KVPressTextGenerationPipeline(model=loaded.model, tokenizer=loaded.tokenizer)
    recorder = Recorder(loaded.tokenizer)
    pipeline.tokenizer = recorder
    answers = {}
    for item in work:
        template = item.point.config.dataset.template
        for request, example in item.requests:
            with kvpress_hooks(loaded.model):
                pipeline(
                    template.context.replace("{context}", example.context),
                    question=template.question.replace("{question}", example.question),
                    answer_prefix=template.answer_prefix.replace("{question}", example.question),
                    press=PointPress(item.point, request.entry.compressed_tokens).build(),
                    max_new_tokens=new_tokens,
                )
            answers[request.id] = recorder.ids
    return answers


def run_kvx(
    loaded: LoadedModel, work: list[PointWork], cost: RowCost, config: Config | None = None
) -> dict[str, Any]:
    answers = {}
    for item in Batch(loaded, config or work[0].point.config, Account(cost, 2**40)).run(work):
        assert isinstance(item, Response), item
        assert item.error_type is None, item.error_message
        answers[item.request.id] = item.token_ids
    return answers


@dataclasses.dataclass(frozen=True)
class Timed:
    """What a run took: on the clock, of all processors together, above what was held before."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    answers: Any


def timed(loaded: LoadedModel, run: Callable[[], Any]) -> Timed:
    before = PeakMemory(loaded.device).read_bytes() or 0
    memory = PeakMemory(loaded.device)
    synchronize(loaded.device)
    start, cpu = time.perf_counter(), time.process_time()
    answers = run()
    synchronize(loaded.device)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return Timed(seconds, cpu_seconds, (memory.read_bytes() or 0) - before, answers)


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
        figures = (compare_mixed if args.shape == "hybrid" else compare)(args, work)
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


@torch.inference_mode()
def compare_mixed(args: argparse.Namespace, work: list[PointWork]) -> dict[str, Any]:
    """A model of sliding and full layers: shared, one request at a time, and kvpress."""
    config = work[0].point.config
    loaded = mixed_layers.mixed_model(config)
    loaded.set_attention("sdpa")
    layers = layers_of(loaded.model)
    cost = RowCost(layers.entry_bytes, 4 * loaded.model.config.vocab_size, layers=layers)
    alone = dataclasses.replace(config, engine=dataclasses.replace(config.engine, share=False))
    short = [PointWork(w.point, w.requests[:1]) for w in work[:2]]
    run_kvx(loaded, short, cost)
    mixed_layers.run_kvpress(loaded, short, 2)

    seconds: dict[str, list[float]] = {}
    cpu_seconds: dict[str, list[float]] = {}
    prefills: dict[str, list[float]] = {}
    peaks: dict[str, list[int]] = {}
    equal: dict[str, int] = {}

    def run(name: str, call: Callable[[], Any]) -> Any:
        with timed_prefills(loaded.device) as parts:
            found = timed(loaded, call)
        answers, prefill_s = found.answers, sum(parts)
        if name == "kvpress":
            answers, prefill_s = answers
        seconds.setdefault(name, []).append(found.seconds)
        cpu_seconds.setdefault(name, []).append(found.cpu_seconds)
        prefills.setdefault(name, []).append(prefill_s)
        peaks.setdefault(name, []).append(found.peak_bytes)
        print(
            f"{name} {found.seconds:.2f} s, of which prefills {prefill_s:.2f} s; "
            f"{found.cpu_seconds:.2f} CPU s; load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        return answers

    def compare_answers(name: str, found: dict[str, Any], expected: dict[str, Any]) -> None:
        same = sum(found[key] == expected[key] for key in expected)
        print(f"{name}: {same} of {len(expected)} responses have kvpress's tokens", flush=True)
        if name not in equal:
            for line in mixed_layers.differences(loaded, work, found, expected):
                print(f"{name}: {line}", flush=True)
        equal[name] = min(same, equal.get(name, same))

    for _ in range(args.repeats):
        answers = run("kvx_shared", lambda: run_kvx(loaded, work, cost, config))
        expected = run("kvpress", lambda: mixed_layers.run_kvpress(loaded, work, args.new_tokens))
        compare_answers("kvx_shared", answers, expected)
    answers = run("kvx_alone", lambda: run_kvx(loaded, work, cost, alone))  # once: it takes long
    compare_answers("kvx_alone", answers, expected)
    weights = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    passing, live = mixed_layers.memory_bound(loaded.model, work, args.max_rows)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    cpu = {name: statistics.median(values) for name, values in cpu_seconds.items()}
    return {
        "device": str(loaded.device), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "model": args.shape, "dtype": args.dtype,
        "points": len(work), "examples": args.examples,
        "new_tokens": args.new_tokens,
        "prompt_tokens_mean": statistics.fmean(r.entry.prompt_tokens for r, _ in work[0].requests),
        "seconds": seconds, "cpu_seconds": cpu_seconds, "prefill_seconds": prefills,
        "ratio_to_alone": median["kvx_alone"] / median["kvx_shared"],
        "ratio_to_kvpress": median["kvpress"] / median["kvx_shared"],
        "cpu_ratio_to_alone": cpu["kvx_alone"] / cpu["kvx_shared"],
        "cpu_ratio_to_kvpress": cpu["kvpress"] / cpu["kvx_shared"],
        "responses": sum(len(w.requests) for w in work), "equal_to_kvpress": equal,
        "peak_bytes_with_weights": {name: max(values) + weights for name, values in peaks.items()},
        "peak_bound_bytes": round(1.1 * (weights + passing + live)),
        "weights_bytes": weights, "prefill_kv_bytes": passing, "live_kv_bytes": live,
    }  # fmt: skip


@contextlib.contextmanager
def timed_prefills(device: torch.device) -> Iterator[list[float]]:
    """The seconds of each of kvx's prefills in this context, presses included."""
    parts: list[float] = []
    prefill = admission.prefill

    def timed_prefill(*args: Any, **options: Any) -> Any:
        synchronize(device)
        start = time.perf_counter()
        found = prefill(*args, **options)
        synchronize(device)
        parts.append(time.perf_counter() - start)
        return found

    admission.prefill = timed_prefill
    try:
        yield parts
    finally:
        admission.prefill = prefill


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
