"""The work of `bench_sweep.py` and `bench_growth.py`, and both ways of doing it, with a clock."""

import argparse
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from kvpress import KVPressTextGenerationPipeline
from transformers import LlamaConfig, LlamaForCausalLM

from kvx.cli.command import compose
from kvx.config.schema import Config
from kvx.data.frozen_examples import load_examples
from kvx.data.tokenizer import load_tokenizer
from kvx.engines.base import PointWork, Response
from kvx.engines.kvpress.account import Account, RowCost
from kvx.engines.kvpress.batch import Batch
from kvx.engines.kvpress.measure import PeakMemory, synchronize
from kvx.engines.kvpress.model import LoadedModel, resolve_device
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
