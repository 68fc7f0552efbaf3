"""engine=kvpress: kvpress's own answers, proved budgets, failures that stay where they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from kvpress import KnormPress, SnapKVPress, StreamingLLMPress
from kvpress.pipeline import KVPressTextGenerationPipeline

from kvx.cli.command import compose
from kvx.config.schema import Config
from kvx.data.frozen_examples import load_examples
from kvx.data.prompt import PromptBuilder
from kvx.engines.base import LatencyWork, Measurement, PointFailed, PointWork, Response, seed_of
from kvx.engines.kvpress.cache import Bucket
from kvx.engines.kvpress.decode import Decoder
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.forward import forward
from kvx.engines.kvpress.prefill import PromptCaches, prefill
from kvx.engines.kvpress.press import PointPress
from kvx.engines.kvpress.prompt_row import PromptRow, kv_use
from kvx.engines.kvpress.sequence import Action, Prefill, Row, StepObserver, Stop
from kvx.engines.kvpress.streams import RandomStream
from kvx.engines.kvpress.transformers_versions import kvpress_hooks
from kvx.points import Point, Request
from kvx.prepare.build import ensure_manifest

KVPRESS = {"snapkv": SnapKVPress, "streaming": StreamingLLMPress, "knorm": KnormPress}
PRESSES = (
    "snapkv", "streaming", "knorm", "tova", "expected_attention", "observed_attention", "keydiff",
    "random",
)  # fmt: skip


def make_work(tmp_path: Path, *overrides: str, n: int | None = None) -> PointWork:
    config = compose(f"paths.output={tmp_path}/outputs", *overrides)
    manifest, folder = ensure_manifest(config)
    point = Point(config, manifest, folder)
    examples = load_examples(folder)
    entries = manifest.entries[:n]
    return PointWork(point, tuple((Request(point, e), examples[e.example_id]) for e in entries))


def answers(*work: PointWork) -> list[Response]:
    """Of all points in one run of the engine, which shares their prefills."""
    items = list(KVPressEngine(work[0].point.config).generate(work))
    responses = [i for i in items if isinstance(i, Response)]
    assert responses == items, items
    return responses


def recall(tmp_path: Path, *overrides: str, n: int | None = None) -> PointWork:
    small = ["dataset.source.n_examples=60", "dataset.sampling.n_per_bin=4"]
    return make_work(tmp_path, *small, *overrides, n=n)


def assert_equals_kvpress(
    work: PointWork, responses: Sequence[Response], press_class: Callable[..., Any]
) -> None:
    """The same texts as kvpress's own text-generation pipeline."""
    config = work.point.config
    engine = KVPressEngine(config)
    pipeline = KVPressTextGenerationPipeline(
        model=engine.loaded.model, tokenizer=engine.loaded.tokenizer
    )
    template = config.dataset.template
    compared = 0
    examples = {example.example_id: example for _, example in work.requests}
    for response in responses:
        example = examples[response.request.entry.example_id]
        assert response.token_ids is not None
        if response.token_ids[0] in engine.loaded.stop_ids:
            continue  # kvpress does not look for a stop token at the first position
        with kvpress_hooks(pipeline.model):
            theirs = pipeline(
                template.context.replace("{context}", example.context),
                question=template.question.replace("{question}", example.question),
                answer_prefix=template.answer_prefix.replace("{question}", example.question),
                press=press_class(1 - config.budget.ratio),
                max_new_tokens=config.decoding.max_new_tokens,
            )["answer"]
        assert response.text == theirs
        compared += 1
    assert compared >= min(len(work.requests), 5)


@pytest.mark.parametrize("press", KVPRESS)
def test_texts_equal_kvpress_pipeline(tmp_path: Path, press: str) -> None:
    work = recall(tmp_path, f"press={press}", "budget=0.5")
    assert_equals_kvpress(work, answers(work), KVPRESS[press])


@pytest.mark.smollm2
def test_texts_equal_kvpress_pipeline_on_smollm2(tmp_path: Path) -> None:
    work = [
        make_work(
            tmp_path, "model=smollm2", "dataset=niah", "dataset.source.n_examples=6",
            "dataset.source.min_words=100", "dataset.source.max_words=300",
            "dataset.binning.n_bins=1", f"press={press}", "budget=0.5",
            "decoding.max_new_tokens=12", n=3,
        )
        for press in KVPRESS
    ]  # fmt: skip
    responses = answers(*work)
    for item, press_class in zip(work, KVPRESS.values(), strict=True):
        ours = [r for r in responses if r.request.point.id == item.point.id]
        assert len(ours) == 3
        assert_equals_kvpress(item, ours, press_class)


@pytest.mark.parametrize("budget", ["budget=0.5", "budget=0.2", "budget=tokens"])
@pytest.mark.parametrize("press", PRESSES)
def test_every_press_keeps_what_the_budget_asks(tmp_path: Path, press: str, budget: str) -> None:
    work = recall(tmp_path, f"press={press}", budget, "budget.tokens=100", n=4)
    for response in answers(work):
        kv, n = response.kv, response.request.entry.compressed_tokens
        asked = 100 if budget == "budget=tokens" else n * work.point.config.budget.ratio
        assert response.error_type is None, response.error_message
        assert kv is not None
        assert response.budget_verified
        assert abs(kv.entries_effective - asked) <= 1
        assert kv.entries_effective == kv.entries_physical
        assert kv.bytes_full == 2 * 2 * 2 * 64 * n * 4  # 2 · layers · KV heads · head size · fp32
        assert kv.bytes_physical == kv.bytes_full * kv.entries_physical / n
        assert kv.bytes_peak > kv.bytes_physical


def prefilled(work: PointWork, index: int = 0, alone: bool = False) -> PromptCaches:
    """One prompt of a point, compressed."""
    loaded = KVPressEngine(work.point.config).loaded
    request, example = work.requests[index]
    builder = PromptBuilder(loaded.tokenizer, work.point.config)
    parts = builder.parts(example)
    n = len(parts.compressed_ids)
    row = PromptRow(
        PointPress(work.point, n, question_tokens=builder.question_tokens(example)),
        work.point.kept_tokens(n),
        RandomStream(seed_of(request), loaded.device),
    )
    return prefill(loaded, parts.compressed_ids, [row], len(parts.rest_ids) + 64, alone)


@torch.inference_mode()
@pytest.mark.parametrize("alone", [False, True])
def test_random_eviction_differs_between_layers_and_not_between_runs(
    tmp_path: Path, alone: bool
) -> None:
    kept: list[list[torch.Tensor]] = []
    for _ in range(2):
        small = prefilled(recall(tmp_path, "press=random", "budget=0.2", n=1), alone=alone)
        full = prefilled(recall(tmp_path, n=1))
        chosen = []
        for some, every in zip(
            small.buckets[0]._layers.values(), full.buckets[0]._layers.values(), strict=True
        ):
            rows = some.keys[0, 0, : some.end]
            chosen.append(torch.cdist(rows, every.keys[0, 0, : every.end]).argmin(1))
        kept.append([c.sort().values for c in chosen])
    assert not torch.equal(kept[0][0], kept[0][1])
    assert torch.equal(kept[0][0], kept[1][0])


def test_a_wrapper_passes_the_budget_on(tmp_path: Path) -> None:
    work = recall(tmp_path, "press=knorm", "press.tolerance_tokens=30", "budget=0.5", n=2)
    work.point.config.press.method = {
        "_target_": "kvpress.ChunkPress",
        "chunk_length": 100,
        "press": {"_target_": "kvpress.KnormPress"},
    }
    for response in answers(work):
        assert response.error_message is None
        assert response.kv is not None
        kept = response.kv.entries_physical / response.request.entry.compressed_tokens
        assert kept == pytest.approx(0.5, abs=0.02)


def test_the_full_cache_is_the_same_under_every_press(tmp_path: Path) -> None:
    texts = {
        press: {
            r.request.entry.example_id: r.text
            for r in answers(recall(tmp_path, f"press={press}", "budget=1.0", n=5))
        }
        for press in ("none", "snapkv", "streaming")
    }
    assert texts["none"] == texts["snapkv"] == texts["streaming"]


class HalfHeartedPress(KnormPress):
    """Keeps more than it was asked to: its label would lie."""

    def compress(self, *args: Any, **kwargs: Any) -> Any:
        return KnormPress(self.compression_ratio / 2).compress(*args, **kwargs)


class MoodyPress(KnormPress):
    """Fails on longer prompts."""

    def compress(self, module: Any, hidden_states: torch.Tensor, *args: Any) -> Any:
        if hidden_states.shape[1] > 500:
            raise RuntimeError("CUDA out of memory (pretended)\nsecond line")
        return super().compress(module, hidden_states, *args)


def test_a_budget_that_is_only_a_label_fails_the_point(tmp_path: Path) -> None:
    target = "press.method._target_=tests.test_engine.HalfHeartedPress"
    work = recall(tmp_path, "press=knorm", target, "budget=0.5")
    (item,) = KVPressEngine(work.point.config).generate([work])
    assert isinstance(item, PointFailed)
    assert "press=knorm was asked to keep" in item.message


def test_a_request_that_raises_is_a_typed_failure_and_touches_no_other(tmp_path: Path) -> None:
    target = "press.method._target_=tests.test_engine.MoodyPress"
    work = recall(tmp_path, "press=knorm", target, "budget=0.5")
    calm = recall(tmp_path, "press=knorm", "budget=0.5")
    failed = 0
    calmly = {r.request.entry.example_id: r for r in answers(calm)}
    for moody in answers(work):
        usual = calmly[moody.request.entry.example_id]
        if moody.request.entry.compressed_tokens > 500:
            failed += 1
            assert moody.error_type == "ENGINE_ERROR"
            said = "RuntimeError: CUDA out of memory (pretended) (press=knorm, "
            assert (moody.error_message or "").startswith(said)
            assert "test_engine.py:" in (moody.error_message or "")
            assert not moody.has_response
        else:
            assert moody.text == usual.text
    assert 0 < failed < len(work.requests)


def test_a_press_of_its_own_pass_that_keeps_nothing_is_told() -> None:
    row = PromptRow(None, 5, RandomStream(0, torch.device("cpu")), entries=[0, 0])
    with pytest.raises(ValueError, match="the press kept no entry at all"):
        kv_use(row, 10)


def test_query_aware_compression_sees_the_question(tmp_path: Path) -> None:
    agnostic = recall(tmp_path, "press=snapkv", "budget=0.3")
    aware = recall(tmp_path, "press=snapkv", "budget=0.3", "prompt.query_aware=true")
    expected = {e.example_id: e.answers[0] for _, e in aware.requests}
    right = {
        name: sum(r.text == expected[r.request.entry.example_id] for r in answers(work))
        for name, work in (("aware", aware), ("agnostic", agnostic))
    }
    assert right["aware"] > right["agnostic"]


def test_sampling_depends_on_seed_and_example_only(tmp_path: Path) -> None:
    hot = ["decoding.temperature=3.0", "press=snapkv", "budget=0.2"]
    first = {r.request.entry.example_id: r.text for r in answers(recall(tmp_path, *hot))}
    some = {r.request.entry.example_id: r.text for r in answers(recall(tmp_path, *hot, n=3))}
    other = {r.request.entry.example_id: r.text for r in answers(recall(tmp_path, *hot, "seed=1"))}
    assert some.items() <= first.items()
    assert other != first


def test_a_time_limit_is_a_timeout_not_an_answer(tmp_path: Path) -> None:
    (response,) = answers(recall(tmp_path, "decoding.timeout_s=0.000001", n=1))
    assert response.error_type == "TIMEOUT"
    assert not response.has_response
    assert response.finish_reason is None


def test_trace_fits_the_tokens_and_shared_work_has_no_times(tmp_path: Path) -> None:
    for response in answers(recall(tmp_path, n=4)):
        assert response.trace is not None
        assert response.token_ids is not None
        assert response.trace.token_ids == response.token_ids
        assert len(response.trace.logprob) == len(response.token_ids)
        assert all(p <= 0 for p in response.trace.logprob)
        assert all(e >= 0 for e in response.trace.entropy_nats)
        assert response.timing is None
        assert response.peak_memory_bytes is None


def test_latency_is_measured_alone_and_adds_up(tmp_path: Path) -> None:
    work = recall(tmp_path, "press=snapkv", "budget=0.5", n=2)
    items = tuple((*pair, repeat) for pair in work.requests for repeat in range(2))
    engine = KVPressEngine(work.point.config)
    measured = [
        m for m in engine.measure([LatencyWork(work.point, items)]) if isinstance(m, Measurement)
    ]
    expected = [(r.id, n) for n in range(2) for r, _ in work.requests]  # all before any again
    assert [(m.request.id, m.repeat) for m in measured] == expected
    for m in measured:
        assert m.timing is not None
        assert m.output_tokens is not None
        assert 0 < m.timing.prefill_s <= m.timing.ttft_s <= m.timing.latency_s
        steps = m.output_tokens - 1
        assert m.timing.tpot_s == pytest.approx((m.timing.latency_s - m.timing.ttft_s) / steps)
        assert (m.peak_memory_bytes or 0) > (m.kv_bytes_peak or 0) > 0


@dataclass
class Watcher(StepObserver):
    """Counts what it sees and stops one row after its first token."""

    stop: Row
    steps: int = 0
    widths: tuple[int, ...] = ()

    def on_prefill(self, rows: Sequence[Row], prefills: Sequence[Prefill]) -> Sequence[Action]:
        assert len(rows) == len(prefills)
        return ()

    def on_step(
        self, rows: Sequence[Row], logits: torch.Tensor, tokens: torch.Tensor
    ) -> Sequence[Action]:
        self.steps += 1
        self.widths += (len(rows),)
        assert logits.shape[0] == tokens.shape[0] == len(rows)
        return [Stop(row, "enough") for row in rows if row is self.stop and len(row.tokens) == 1]


@torch.inference_mode()
def test_an_observer_sees_every_row_and_stops_only_its_own(tmp_path: Path) -> None:
    work = recall(tmp_path, "decoding.max_new_tokens=6", n=2)
    config: Config = work.point.config
    loaded = KVPressEngine(config).loaded
    builder = PromptBuilder(loaded.tokenizer, config)
    rows, buckets, prefills = [], [], []
    for index, (request, example) in enumerate(work.requests):
        parts = builder.parts(example)
        bucket: Bucket = prefilled(work, index).buckets[0]
        row = Row(request, len(parts.compressed_ids))
        logits = forward(loaded, [bucket], [row], torch.tensor([parts.rest_ids]))[:, -1]
        rows.append(row)
        buckets.append((bucket, [row]))
        prefills.append(Prefill(logits[0], parts.n_tokens, len(parts.compressed_ids)))
    watcher = Watcher(stop=rows[0])
    decoder = Decoder(loaded, config.decoding, [watcher])
    decoder.admit(buckets, prefills, torch.stack([p.logits for p in prefills]))
    while decoder.rows:
        decoder.step()
    found = {r.request.id: r for r in answers(work)}
    alone = [found[request.id] for request, _ in work.requests]
    assert rows[0].tokens == (alone[0].token_ids or [])[:1]
    assert rows[0].finish_reason in ("enough", "stop")
    assert rows[1].tokens == alone[1].token_ids
    assert watcher.steps == max(len(r.tokens) for r in rows)
    assert watcher.widths[0] == 2
    assert watcher.widths[-1] == 1
