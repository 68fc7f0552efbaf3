"""Sharing prefills and decoding together changes no answer, and keeps its memory promise."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kvpress import ExpectedAttentionPress, KnormPress
from transformers import LlamaConfig, LlamaForCausalLM

from kvx.cli.command import compose
from kvx.config.schema import SHARING
from kvx.engines.base import PointFailed, PointWork, Response, Trace
from kvx.engines.kvpress import admission, batch, forward
from kvx.engines.kvpress import prefill as prefill_module
from kvx.engines.kvpress.account import Account, RowCost
from kvx.engines.kvpress.batch import Batch
from kvx.engines.kvpress.cache import SLACK, Bucket
from kvx.engines.kvpress.chunks import chunks
from kvx.engines.kvpress.decode import Decoder
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.layers import CachedLayer
from kvx.engines.kvpress.lengths import group_by_length, padded
from kvx.engines.kvpress.linear import fast_linears
from kvx.engines.kvpress.memory import free_bytes
from kvx.engines.kvpress.sequence import StepObserver
from kvx.engines.kvpress.shared_scores import remember_average_rope
from kvx.errors import UserError
from tests.presses import EVERYWHERE
from tests.test_engine import make_work, recall

BUDGETS = ("0.5", "0.25")


def tokens(work: Sequence[PointWork], *, share: bool = True) -> dict[str, Any]:
    for item in work:
        item.point.config.engine.share = share
    found = {}
    for item in KVPressEngine(work[0].point.config).generate(work):
        assert isinstance(item, Response), item
        assert item.error_message is None
        found[item.request.id] = item.token_ids
    return found


def points(tmp_path: Path, presses: Sequence[str], *overrides: str, n: int = 3) -> list[PointWork]:
    return [
        recall(tmp_path, f"press={press}", f"budget={budget}", *overrides, n=n)
        for press in presses
        for budget in (("1.0",) if press == "none" else BUDGETS)
    ]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every shipped press at two budgets, in one shared run."""
    return tokens(points(tmp_path_factory.mktemp("together"), EVERYWHERE))


@pytest.mark.parametrize("press", EVERYWHERE)
def test_every_press_answers_the_same_shared_and_alone(
    tmp_path: Path, together: dict[str, Any], press: str
) -> None:
    alone = tokens(points(tmp_path, [press]), share=False)
    budgets = 1 if press == "none" else len(BUDGETS)
    assert len(set(alone)) == 3 * budgets
    assert alone == {key: together[key] for key in alone}


@pytest.mark.smollm2
def test_smollm2_answers_the_same_shared_and_alone(tmp_path: Path) -> None:
    work = [
        make_work(
            tmp_path, "model=smollm2", "dataset=niah", "dataset.source.n_examples=6",
            "dataset.source.min_words=100", "dataset.source.max_words=300",
            "dataset.binning.n_bins=1", f"press={press}", "budget=0.5",
            "decoding.max_new_tokens=10", n=1,
        )
        for press in ("snapkv", "pyramidkv", "expected_attention", "random")
    ]  # fmt: skip
    assert tokens(work) == tokens(work, share=False)


def test_one_prefill_serves_all_points_of_an_example(tmp_path: Path) -> None:
    work = points(tmp_path, ["none", "snapkv", "streaming", "knorm", "random"], n=4)
    lengths: list[int] = []
    body = KVPressEngine(work[0].point.config).loaded.model.model

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        lengths.append(kwargs["input_ids"].numel())

    handle = body.register_forward_pre_hook(count, with_kwargs=True)
    try:
        answers = tokens(work)
    finally:
        handle.remove()
    prompts = [request.entry.compressed_tokens for request, _ in work[0].requests]
    assert len(answers) == 4 * 9
    assert sorted(n for n in lengths if n in prompts) == sorted(prompts)


def test_one_look_at_the_vocabulary_gives_all_points_their_first_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing follows what is compressed: hundreds of rows would each cost a product."""
    work = points(tmp_path, ["none", "snapkv", "knorm"], "prompt.query_aware=true", n=2)
    prefilled = prefill_module.prefill
    given: list[torch.Tensor] = []

    def noting(*args: Any, **kwargs: Any) -> Any:
        caches = prefilled(*args, **kwargs)
        given.append(caches.logits)
        return caches

    monkeypatch.setattr(admission, "prefill", noting)
    assert len(tokens(work)) == 2 * 5
    assert [logits.ndim for logits in given] == [1, 1]  # of the last token, once a prompt


@dataclass
class Held(StepObserver):
    """Notes what the caches take at every step, and the moment rows join."""

    batch: Batch
    held: list[int]

    def on_step(self, rows: Sequence[Any], logits: Any, tokens: Any) -> Sequence[Any]:
        self.held.append(self.batch.scheduler.decoder.bytes)
        return ()


def test_caches_stay_below_the_cap_and_rows_wait(tmp_path: Path) -> None:
    work = points(tmp_path, ["snapkv", "streaming", "tova"], "dataset.max_new_tokens=24", n=4)
    free = tokens(work)
    loaded = KVPressEngine(work[0].point.config).loaded
    cost = RowCost(entry_bytes=2 * 2 * 2 * 64 * 4, logits_bytes=0)
    largest = max(cost.of(item.point, r) for item in work for r, _ in item.requests)
    for cap in (largest, 3 * largest):
        held = []
        running = Batch(loaded, work[0].point.config, Account(cost, cap))
        running.observers.append(Held(running, held))
        found = {}
        for item in running.run(work):
            assert isinstance(item, Response)
            found[item.request.id] = item.token_ids
        assert found == free
        assert 0 < max(held) <= cap


def test_few_rows_at_once_change_nothing(tmp_path: Path) -> None:
    free = tokens(points(tmp_path, ["snapkv", "random"], n=5))
    few = tokens(points(tmp_path, ["snapkv", "random"], "engine.max_rows=1", n=5))
    assert few == free


def test_a_row_larger_than_the_cap_is_refused_before_the_start(tmp_path: Path) -> None:
    work = recall(tmp_path, "press=snapkv", "budget=0.5", "engine.max_cache_gib=0.0001")
    with pytest.raises(
        UserError, match=r"engine.max_cache_gib: point snapkv-0.5-.* needs 0.00 GiB"
    ):
        KVPressEngine(work.point.config).check([work.point])


def test_models_whose_rows_cannot_share_still_answer_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = points(tmp_path, ["none", "snapkv", "streaming"], n=3)
    shared = tokens(work)
    monkeypatch.setattr(batch, "ragged_obstacle", lambda model: "something else")
    assert tokens(work) == shared


@pytest.mark.parametrize("method", ["step", "admit"])
def test_a_batch_that_fails_is_tried_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    work = points(tmp_path, ["snapkv", "random"], n=3)
    expected = tokens(work)
    original = getattr(Decoder, method)

    def narrow(self: Decoder, *args: Any) -> Any:
        rows = len(self.rows) if method == "step" else len(args[1])
        if rows > 1:
            raise RuntimeError("CUDA out of memory (pretended)")
        return original(self, *args)

    monkeypatch.setattr(Decoder, method, narrow)
    assert tokens(work) == expected


@pytest.mark.parametrize("method", ["step", "admit"])
def test_a_request_that_is_tried_alone_records_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    work = points(tmp_path, ["snapkv", "expected_attention", "random"], "signals=full", n=2)

    def traces() -> dict[str, Trace]:
        found = {}
        for item in KVPressEngine(work[0].point.config).generate(work):
            assert isinstance(item, Response), item
            assert item.trace is not None
            found[item.request.id] = item.trace
        return found

    expected = traces()
    original, failed = getattr(Decoder, method), []

    def narrow(self: Decoder, *args: Any) -> Any:
        rows = len(self.rows) if method == "step" else len(args[1])
        if rows > 1:
            failed.append(rows)
            raise RuntimeError("CUDA out of memory (pretended)")
        return original(self, *args)

    monkeypatch.setattr(Decoder, method, narrow)
    alone = traces()
    assert failed
    assert {k: t.score_evicted for k, t in alone.items()} == {
        k: t.score_evicted for k, t in expected.items()
    }
    for key, trace in alone.items():
        before = expected[key]
        assert trace.score_evicted is not None
        assert trace.probe is not None
        assert before.probe is not None
        assert trace.probe.same_top1 == before.probe.same_top1
        assert trace.probe.kl_nats == pytest.approx(before.probe.kl_nats, abs=1e-5)
        assert max(trace.probe.kl_nats) > 0


def test_a_time_limit_is_for_one_request_alone(tmp_path: Path) -> None:
    work = points(tmp_path, ["snapkv", "knorm"], "decoding.timeout_s=600", n=3)
    widths = []

    class Widths(StepObserver):
        def on_prefill(self, rows: Sequence[Any], prefills: Sequence[Any]) -> Sequence[Any]:
            widths.append(len(rows))
            return ()

    loaded = KVPressEngine(work[0].point.config).loaded
    running = Batch(loaded, work[0].point.config, Account(RowCost(1024, 0), 2**40))
    running.observers.append(Widths())
    assert len(list(running.run(work))) == len(widths) == 12
    assert set(widths) == {1}


def test_a_long_question_is_taken_in_several_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = points(tmp_path, ["snapkv", "streaming"], n=3)
    whole = tokens(work)
    monkeypatch.setattr(forward, "QUESTION_TOKENS", 8)  # of all rows together
    assert tokens(work) == whole


@dataclass
class LatePress(KnormPress):
    """Knorm that keeps too much of all prompts but the first it sees."""

    lengths: ClassVar[list[int]] = []

    def compress(self, module: Any, hidden: Any, keys: Any, values: Any, *rest: Any) -> Any:
        kept = super().compress(module, hidden, keys, values, *rest)
        if keys.shape[2] not in self.lengths:
            self.lengths.append(keys.shape[2])
        return kept if self.lengths.index(keys.shape[2]) == 0 else (keys, values)


def test_a_point_that_fails_late_leaves_the_rows_beside_its_own(tmp_path: Path) -> None:
    good = recall(tmp_path, "press=knorm", "budget=0.5", n=2)
    method = f"press.method._target_={LatePress.__module__}.LatePress"
    late = recall(tmp_path, "press=knorm", "press.name=late", method, "budget=0.5", n=2)
    assert len({e.entry.compressed_tokens for e, _ in good.requests}) == 2
    expected = tokens([good])
    LatePress.lengths.clear()
    found = list(KVPressEngine(late.point.config).generate([late, good]))
    (failed,) = [item for item in found if isinstance(item, PointFailed)]
    assert failed.point.dir == late.point.dir
    assert "was asked to keep" in failed.message
    answers = {r.request.id: r.token_ids for r in found if isinstance(r, Response)}
    assert {k: v for k, v in answers.items() if k in expected} == expected


class MoodyPress(KnormPress):
    """Fails on every prompt."""

    def compress(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("not today")


def test_a_press_that_raises_touches_no_other_point(tmp_path: Path) -> None:
    target = "press.method._target_=tests.test_shared_run.MoodyPress"
    good = points(tmp_path, ["snapkv", "streaming"])
    bad = recall(tmp_path, "press=knorm", target, "budget=0.5", n=3)
    items = list(KVPressEngine(bad.point.config).generate([good[0], bad, *good[1:]]))
    failed = {i.request.id for i in items if isinstance(i, Response) and i.error_message}
    answers = {i.request.id: i.token_ids for i in items if isinstance(i, Response)}
    assert failed == {request.id for request, _ in bad.requests}
    assert {k: v for k, v in answers.items() if k not in failed} == tokens(good)


class OwnForward(KnormPress):
    """Does more than score and drop."""

    def forward_hook(self, *args: Any) -> Any:
        return super().forward_hook(*args)


def test_a_press_that_does_more_than_it_declares_is_refused(tmp_path: Path) -> None:
    target = "press.method._target_=tests.test_shared_run.OwnForward"
    work = recall(tmp_path, "press=knorm", target, "budget=0.5", n=3)
    with pytest.raises(UserError, match="OwnForward has a forward_hook of its own"):
        KVPressEngine(work.point.config).check([work.point])
    declared = recall(
        tmp_path, "press=knorm", target, "press.needs=[changes_forward]", "budget=0.5", n=3
    )
    usual = recall(tmp_path, "press=knorm", "budget=0.5", n=3)
    assert list(tokens([declared]).values()) == list(tokens([usual]).values())


def test_a_press_that_needs_the_question_says_so(tmp_path: Path) -> None:
    work = recall(tmp_path, "press=snapkv", "press.needs=[query_in_prompt]", "budget=0.5")
    with pytest.raises(UserError, match=r"add prompt.query_aware=true"):
        KVPressEngine(work.point.config).check([work.point])


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_buckets_hold_every_row_once_and_waste_little(lengths: list[int]) -> None:
    groups = group_by_length(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        longest, shortest = max(lengths[i] for i in group), min(lengths[i] for i in group)
        assert longest <= padded(shortest)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    question=st.integers(1, 4),
    window=st.sampled_from([None, 2, 3, 5, 8]),
    chunked=st.booleans(),
    softcap=st.sampled_from([None, 1.5]),
    with_sinks=st.booleans(),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_ragged_attention_equals_each_row_alone(
    lengths: list[int],
    question: int,
    window: int | None,
    chunked: bool,
    softcap: float | None,
    with_sinks: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    """Question, steps beyond a window's slack, rows that leave: what each row's own cache gives."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    kv_heads, groups, size = 2, 3, 4
    sinks = draw(kv_heads * groups) if with_sinks else None
    caches = [(draw(1, kv_heads, n, size), draw(1, kv_heads, n, size)) for n in lengths]
    steps = (question, 1, 1) if window is None else (question, *[1] * (SLACK + 3), question, 1)
    bucket = Bucket(len(lengths), room=sum(steps))
    layer = CachedLayer(0, None, 0, window, chunked and window is not None)
    bucket.fill(layer, caches)
    for n in steps:
        rows = len(caches)
        query = draw(rows, kv_heads * groups, n, size)
        keys, values = draw(rows, kv_heads, n, size), draw(rows, kv_heads, n, size)
        positions = torch.tensor([[c[0].shape[2]] for c in caches]) + torch.arange(n)
        bucket.append(0, keys, values)
        got = bucket.attend(0, query, positions, softcap=softcap, sinks=sinks)
        bucket.advance(n)
        for i in range(rows):
            k = torch.cat([caches[i][0], keys[i : i + 1]], dim=2)
            v = torch.cat([caches[i][1], values[i : i + 1]], dim=2)
            caches[i] = (k, v)
            at, asked = torch.arange(k.shape[2]), positions[i][:, None]
            seen = at <= asked
            if layer.chunked:
                seen &= at // window == asked // window
            elif window is not None:
                seen &= at > asked - window
            scores = query[i : i + 1] @ k.repeat_interleave(groups, 1).transpose(2, 3) / size**0.5
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            scores = scores.masked_fill(~seen, -torch.inf)
            if sinks is not None:
                extra = sinks.view(1, -1, 1, 1).expand(1, kv_heads * groups, n, 1)
                scores = torch.cat([scores, extra], dim=-1)
            weights = scores.softmax(-1)[..., : k.shape[2]]
            alone = weights @ v.repeat_interleave(groups, 1)
            torch.testing.assert_close(got[i : i + 1], alone, atol=1e-5, rtol=1e-4)
        if rows > 1 and data.draw(st.booleans()):
            slot = data.draw(st.integers(0, rows - 1))
            bucket.drop(slot)
            caches[slot] = caches[-1]
            caches.pop()


def test_prompts_are_cut_into_as_few_prefills_as_the_cap_allows(tmp_path: Path) -> None:
    work = points(tmp_path, ["none", "snapkv", "streaming"], n=1)
    requests = [r for item in work for r, _ in item.requests]
    example = work[0].requests[0][1]
    cost = RowCost(entry_bytes=1, logits_bytes=0)
    sizes = [cost.of(r.point, r) for r in requests]
    (whole,) = chunks(example, requests, Account(cost, sum(sizes)))
    assert len(whole.requests) == len(requests)
    assert whole.bytes == sum(sizes)
    several = chunks(example, requests, Account(cost, max(sizes)))
    assert len(several) > 1
    assert all(chunk.bytes <= max(sizes) for chunk in several)
    assert sum(len(chunk.requests) for chunk in several) == len(requests)


@torch.inference_mode()
def test_onednn_multiplies_like_torch_and_leaves_no_trace() -> None:
    model = KVPressEngine(compose()).loaded.model
    ids = torch.arange(40)[None]
    before = model(input_ids=ids).logits
    with fast_linears(model):
        assert "forward" in model.model.layers[0].mlp.__dict__  # its gated MLPs as well
        inside = model(input_ids=ids).logits
    torch.testing.assert_close(inside, before, atol=1e-4, rtol=1e-4)
    assert torch.equal(model(input_ids=ids).logits, before)


@torch.inference_mode()
def test_a_gated_mlp_of_another_kind_is_left_alone() -> None:
    """Named like Llama's, with GELU instead of SiLU."""
    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, vocab_size=11, hidden_act="gelu",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with fast_linears(model):
        assert "forward" in model.model.layers[0].mlp.gate_proj.__dict__
        assert "forward" not in model.model.layers[0].mlp.__dict__


@torch.inference_mode()
def test_expected_attention_averages_its_rotary_matrices_once_with_the_same_result() -> None:
    model = KVPressEngine(compose()).loaded.model
    layer = model.model.layers[0].self_attn
    layer.rotary_emb = model.model.rotary_emb
    plain, quick = ExpectedAttentionPress(0.5), ExpectedAttentionPress(0.5)
    calls = []
    own = quick.apply_avg_rope
    quick.apply_avg_rope = lambda *args: calls.append(args[-1]) or own(*args)
    remember_average_rope(quick)
    generator = torch.Generator().manual_seed(0)
    size = layer.head_dim
    for length in (300, 300, 301):
        mean = torch.randn(1, 4, size, generator=generator)
        covariance = torch.randn(1, 4, size, size, generator=generator)
        expected = plain.apply_avg_rope(layer, mean, covariance, length)
        got = quick.apply_avg_rope(layer, mean, covariance, length)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    assert calls == [300, 301]


def test_free_memory_is_what_a_job_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    whole = free_bytes(cpu)
    monkeypatch.setenv(SHARING, "4")
    assert free_bytes(cpu) < whole / 3
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1")  # MiB: less than this process has already
    assert free_bytes(cpu) == 0
