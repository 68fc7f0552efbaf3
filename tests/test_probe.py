"""signals=full: the probe and the traces that a run records, against direct computations."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from kvx.data.prompt import PromptBuilder
from kvx.engines.base import PointWork, Probe, Response
from kvx.engines.kvpress import admission
from kvx.engines.kvpress.decode import Decoder
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.measure import clear_masks
from kvx.engines.kvpress.transformers_versions import pressing
from kvx.guard.signals import divergence_nats
from kvx.store import schemas
from tests.conftest import Kvx
from tests.test_engine import make_work

SMALL = ("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1", "dataset.binning.n_bins=3")


def generated(tmp_path: Path, *points: tuple[str, ...]) -> dict[tuple[str, str], Response]:
    """The responses of several points that ran together, by point and example."""
    return generated_of([make_work(tmp_path, *SMALL, *point) for point in points])


def generated_of(works: list[PointWork]) -> dict[tuple[str, str], Response]:
    engine = KVPressEngine(works[0].point.config)
    found = [item for item in engine.generate(works) if isinstance(item, Response)]
    return {(r.request.point.id, r.request.entry.example_id): r for r in found}


def probe_of(response: Response) -> Probe:
    assert response.trace is not None
    assert response.trace.probe is not None
    return response.trace.probe


def test_the_probe_is_the_divergence_from_the_full_cache(tmp_path: Path) -> None:
    full, half = ("press=none", "signals=full"), ("press=knorm", "budget.ratio=0.5", "signals=full")
    responses = generated(tmp_path, full, half)
    assert len(responses) == 6
    work = make_work(tmp_path, *SMALL, *half)
    engine = KVPressEngine(work.point.config)
    model, device = engine.loaded.model, engine.loaded.device
    builder = PromptBuilder(engine.loaded.tokenizer, work.point.config)
    from kvpress import KnormPress
    from transformers import DynamicCache

    for request, example in work.requests:
        parts = builder.parts(example)
        n = len(parts.compressed_ids)
        logits = []
        for press in (None, KnormPress(0.5)):
            cache = DynamicCache()
            ids = torch.tensor([parts.compressed_ids], device=device)
            rest = torch.tensor([parts.rest_ids], device=device)
            with torch.inference_mode():
                with pressing(model, press):
                    model(ids, past_key_values=cache)
                positions = torch.arange(n, n + rest.shape[1])[None]
                out = model(rest, past_key_values=cache, position_ids=positions)
            logits.append(out.logits[0, -8:])
        expected = divergence_nats(*logits)
        probe = probe_of(responses[request.point.id, example.example_id])
        assert probe.kl_nats == pytest.approx(expected.tolist(), rel=1e-2, abs=1e-4)
        same = (logits[0].argmax(-1) == logits[1].argmax(-1)).tolist()
        assert probe.same_top1 == same
        assert max(probe.kl_nats) > 0


def test_the_full_cache_does_not_diverge_from_itself(tmp_path: Path) -> None:
    for response in generated(tmp_path, ("press=none", "signals=full")).values():
        probe = probe_of(response)
        assert max(probe.kl_nats) == pytest.approx(0, abs=1e-6)
        assert all(probe.same_top1)


def test_a_probe_needs_no_full_cache_among_the_points(tmp_path: Path) -> None:
    half = ("press=knorm", "budget.ratio=0.5", "signals=full")
    quarter = ("press=streaming", "budget.ratio=0.25", "signals=full")
    beside = generated(tmp_path, half, quarter, ("press=none", "signals=full"))
    alone = generated(tmp_path, half, quarter)
    assert len(alone) == 6
    for key, response in alone.items():
        assert response.token_ids == beside[key].token_ids
        assert response.kv == beside[key].kv
        found, expected = probe_of(response), probe_of(beside[key])
        assert found.kl_nats == pytest.approx(expected.kl_nats, rel=1e-2, abs=1e-5)


WATCHED = tuple(
    (f"press={press}", f"budget.ratio={budget}", "signals=full")
    for press, budget in (("snapkv", 0.5), ("chunkkv", 0.5), ("knorm", 1))
)  # fmt: skip


def assert_seen_alike(found: dict[Any, Response], expected: dict[Any, Response]) -> None:
    """The same probe, score mass and tokens of every response."""
    assert found.keys() == expected.keys()
    for key, response in found.items():
        other = expected[key]
        assert response.error_message is None
        assert response.trace is not None
        assert other.trace is not None
        assert response.token_ids == other.token_ids
        here, there = probe_of(response), probe_of(other)
        assert here.kl_nats == pytest.approx(there.kl_nats, rel=1e-2, abs=1e-5)
        assert here.same_top1 == there.same_top1
        mass, expected_mass = response.trace.score_evicted, other.trace.score_evicted
        assert (mass is None) == (expected_mass is None)
        assert mass is None or mass == pytest.approx(expected_mass, rel=1e-4)
        assert response.trace.logprob == pytest.approx(other.trace.logprob, abs=1e-4)
        assert response.kv == other.kv
        assert response.trace.kept_percent == other.trace.kept_percent
        assert response.trace.context_chars == other.trace.context_chars


def test_a_request_that_is_tried_alone_is_seen_as_in_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = [make_work(tmp_path, *SMALL, *point) for point in WATCHED]
    together = generated_of(works)
    assert any(r.trace is not None and r.trace.score_evicted for r in together.values())
    real, step, failures = admission.prefill, Decoder.step, []

    def prefill(loaded: Any, ids: Any, rows: Any, room: int, alone: bool) -> Any:
        if len(rows) > 2:
            failures.append("prefill")
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(loaded, ids, rows, room, alone)

    with monkeypatch.context() as patch:
        patch.setattr(admission, "prefill", prefill)
        assert_seen_alike(generated_of(works), together)

    def failing(decoder: Decoder) -> Any:
        if len(decoder.rows) > 1:
            failures.append("step")
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(decoder)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "step", failing)
        assert_seen_alike(generated_of(works), together)
    assert {"prefill", "step"} == set(failures)


@pytest.mark.parametrize("alone", ["engine.share=false", "decoding.timeout_s=600"])
def test_requests_that_share_nothing_are_seen_as_in_a_batch(tmp_path: Path, alone: str) -> None:
    works = [make_work(tmp_path, *SMALL, *point) for point in WATCHED]
    together = generated_of(works)
    for work in works:
        config = work.point.config
        if alone == "engine.share=false":
            config.engine.share = False
        else:  # in place: the points stay the same
            config.decoding.timeout_s = 600
    assert_seen_alike(generated_of(works), together)


@pytest.mark.parametrize(
    ("press", "needs"),
    [
        ({"_target_": "kvpress.AdaKVPress", "press": {"_target_": "kvpress.KnormPress"}}, "masks"),
        ({"_target_": "kvpress.KVComposePress"}, "changes_forward"),
    ],
)
def test_presses_that_run_alone_have_a_probe_too(
    tmp_path: Path, press: dict[str, Any], needs: str
) -> None:
    """Against the logits of kvpress's own context and of the full cache."""
    from kvpress import AdaKVPress, KnormPress, KVComposePress
    from transformers import DynamicCache

    more = ("signals=full", "budget.ratio=0.1", f"press.needs=[{needs}]", "press.name=mine")
    work = make_work(tmp_path, *SMALL, "press=knorm", *more)
    work.point.config.press.method, work.point.config.press.score_uses_budget = press, True
    engine = KVPressEngine(work.point.config)
    model = engine.loaded.model
    builder = PromptBuilder(engine.loaded.tokenizer, work.point.config)
    found = {r.request.id: r for r in engine.generate([work]) if isinstance(r, Response)}
    largest = 0.0
    for request, example in work.requests:
        parts, logits = builder.parts(example), []
        n, rest = len(parts.compressed_ids), torch.tensor([parts.rest_ids])
        theirs = KVComposePress(compression_ratio=0.9) if needs != "masks" else AdaKVPress(
            KnormPress(0.9)
        )  # fmt: skip
        for own in (None, theirs):
            clear_masks(model)
            cache = DynamicCache()
            ids = torch.tensor([parts.compressed_ids])
            with torch.inference_mode(), pressing(model, own):
                model.model(ids, past_key_values=cache)
            positions = torch.arange(n, n + rest.shape[1])[None]
            if needs != "masks" and own is not None:  # layers of different length: kvx's own loop
                expected = [layer.keys.shape[2] for layer in cache.layers]
                assert found[request.id].kv.entries_physical == sum(expected) / len(expected)
                logits.append(None)
                continue
            with torch.inference_mode():
                out = model(rest, past_key_values=cache, position_ids=positions)
            logits.append(out.logits[0, -8:])
        clear_masks(model)
        probe = probe_of(found[request.id])
        assert len(probe.kl_nats) == rest.shape[1]
        largest = max(largest, *probe.kl_nats)
        if logits[1] is not None:
            expected = divergence_nats(*logits)
            assert probe.kl_nats == pytest.approx(expected.tolist(), rel=1e-2, abs=1e-4)
    assert largest > 1e-3


def test_watching_changes_no_answer(tmp_path: Path) -> None:
    points = [("press=snapkv", f"budget.ratio={b}") for b in ("0.5", "0.2")]
    plain = generated(tmp_path, *points)
    watched = generated(tmp_path, *[(*point, "signals=full") for point in points])
    texts = sorted((r.request.entry.example_id, r.text) for r in plain.values())
    assert texts == sorted((r.request.entry.example_id, r.text) for r in watched.values())


def test_the_evicted_share_grows_as_the_budget_falls(tmp_path: Path) -> None:
    budgets = ("0.75", "0.5", "0.25")
    points = [("press=expected_attention", f"budget.ratio={b}", "signals=full") for b in budgets]
    by_example: dict[str, dict[float, float]] = {}
    for response in generated(tmp_path, *points).values():
        assert response.trace is not None
        share = response.trace.score_evicted
        assert share is not None
        assert 0 < share < 1
        budget = response.request.point.config.budget.ratio
        by_example.setdefault(response.request.entry.example_id, {})[budget] = share
    assert len(by_example) == 3
    for shares in by_example.values():
        assert shares[0.75] < shares[0.5] < shares[0.25]


def test_traces_are_stored_whole(kvx: Kvx) -> None:
    arguments = ("experiment_name=e", "signals=full", *SMALL, "decoding.max_new_tokens=30")
    outcome = kvx("run", *arguments, "-m", "press=none,adakv,snapkv", "budget=0.5")
    assert outcome.code == 0, outcome.err
    paths = list(Path("outputs/runs/e/points").glob("*/traces.parquet"))
    assert len(paths) == 3
    for path in paths:
        for row in pq.read_table(path).to_pylist():
            n = len(row["token_ids"])
            for name in ("logprob", "entropy_nats", "top_logprobs", *schemas.SIGNALS):
                assert len(row[name]) == n, name
            assert row["signals_source"] == "full"
            assert len(row["probe_kl_nats"]) == len(row["probe_same_top1"]) > 0


def test_the_shares_of_positions_that_were_kept_add_up_to_the_budget(tmp_path: Path) -> None:
    """Also of a press that hides entries, and of one whose scores are known."""
    points = [
        (f"press={name}", "budget.ratio=0.3", "signals=full")
        for name in ("knorm", "snapkv", "adakv")
    ]
    works = [make_work(tmp_path, *SMALL, *point) for point in points]
    examples = {e.example_id: e for work in works for _, e in work.requests}
    for (_, example), response in generated_of(works).items():
        trace, kv = response.trace, response.kv
        assert trace is not None
        assert kv is not None
        assert trace.kept_percent is not None
        assert trace.context_chars is not None
        n = response.request.entry.compressed_tokens
        assert len(trace.kept_percent) == len(trace.context_chars) == n
        assert sum(trace.context_chars) == len(examples[example].context)
        assert sum(trace.kept_percent) == pytest.approx(100 * kv.entries_effective, abs=0.5 * n)
    for response in generated(tmp_path, ("press=none", "signals=full")).values():
        assert response.trace is not None
        assert response.trace.kept_percent is None
