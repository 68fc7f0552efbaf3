"""measure=fidelity: distributions along the full cache's answer, against a loop written out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from kvpress import AdaKVPress, KnormPress, SnapKVPress
from torch.nn.functional import kl_div
from transformers import DynamicCache

from kvx.data.prompt import PromptBuilder
from kvx.engines.base import Fidelity, PointWork
from kvx.engines.kvpress import divergence
from kvx.engines.kvpress.divergence import compare
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.fidelity import Comparison
from kvx.engines.kvpress.measure import clear_masks
from kvx.engines.kvpress.transformers_versions import pressing
from kvx.points import Request
from kvx.store import fidelity_schemas
from tests.conftest import Kvx
from tests.test_engine import make_work

SMALL = ("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1", "dataset.binning.n_bins=3")
PRESSES: dict[str, Any] = {
    "snapkv": lambda: SnapKVPress(0.5, window_size=64, kernel_size=5),
    "knorm": lambda: KnormPress(0.5),
    "adakv": lambda: AdaKVPress(SnapKVPress(0.5, window_size=64, kernel_size=5)),
}
RUN = Path("outputs/runs/default")


def test_slices_of_the_vocabulary_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    full, rows = 6 * torch.randn(1, 103, generator=generator), torch.randn(3, 103)
    rows[2] = full[0]
    log_p, log_q = full.log_softmax(-1), rows.log_softmax(-1)
    expected = kl_div(log_q, log_p.expand_as(log_q), log_target=True, reduction="none").sum(-1)
    for logits in (2**21, 40):
        monkeypatch.setattr(divergence, "SLICE_LOGITS", logits)
        found = compare(full[0], rows, 7)
        assert found.kl_nats == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)
        assert found.kl_nats[2] == 0.0
        assert found.logprob == pytest.approx(log_q[:, 7].tolist(), rel=1e-6)
        assert found.full_logprob == pytest.approx(float(log_p[0, 7]), rel=1e-6)
        assert found.same_top1 == (rows.argmax(-1) == full.argmax(-1)).tolist()


def test_a_token_that_is_ruled_out_is_no_nan() -> None:
    full = torch.tensor([0.0, 1.0, -torch.inf, 2.0])
    rows = torch.tensor([[0.0, 1.0, -torch.inf, 2.0], [0.0, 1.0, 2.0, -torch.inf]])
    found = compare(full, rows, 3)
    assert found.kl_nats[0] == 0
    p = full.softmax(-1)
    assert found.kl_nats[1] == pytest.approx(float(p[3] * (p[3].log() + 200)), rel=0.01)
    assert found.logprob[1] == -200


def works_of(tmp_path: Path, *more: str) -> list[PointWork]:
    full = make_work(tmp_path, *SMALL, "press=none", *more)
    return [
        full,
        *(make_work(tmp_path, *SMALL, f"press={p}", "budget=0.5", *more) for p in PRESSES),
    ]


def compared(works: Sequence[PointWork]) -> dict[tuple[str, str], Fidelity]:
    found = list(KVPressEngine(works[0].point.config).fidelity(works))
    items = [item for item in found if isinstance(item, Fidelity)]
    assert len(items) == len(found) == sum(len(work.requests) for work in works)
    return {(i.request.point.config.press.name, i.request.entry.example_id): i for i in items}


def written_out(model: Any, parts: Any, press: Any, tokens: Sequence[int] | None, stop: Any) -> Any:
    """Logits [tokens, vocab] before each token of an answer, and the answer: greedy or `tokens`."""
    cache, n = DynamicCache(), len(parts.compressed_ids)
    with torch.inference_mode():
        with pressing(model, press):
            model(torch.tensor([parts.compressed_ids]), past_key_values=cache)
        ids, logits = list(parts.rest_ids), []
        answer: list[int] = []
        while True:
            at = torch.arange(n, n + len(ids))[None]
            out = model(torch.tensor([ids]), past_key_values=cache, position_ids=at)
            logits.append(out.logits[0, -1])
            n += len(ids)
            ids = [int(logits[-1].argmax()) if tokens is None else tokens[len(answer)]]
            answer += ids
            if len(answer) == 8 or ids[0] in stop:
                clear_masks(model)
                return torch.stack(logits), answer


def test_every_way_gives_what_transformers_and_kvpress_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = works_of(tmp_path)
    together = compared(works)
    engine = KVPressEngine(works[0].point.config)
    model, stop = engine.loaded.model, engine.loaded.stop_ids
    builder = PromptBuilder(engine.loaded.tokenizer, works[0].point.config)
    for request, example in works[0].requests:
        parts = builder.parts(example)
        full, answer = written_out(model, parts, None, None, stop)
        log_p = full.log_softmax(-1)
        for press in ("none", *PRESSES):
            found = together[press, request.entry.example_id]
            make = PRESSES.get(press, lambda: None)
            logits, _ = written_out(model, parts, make(), answer, stop)
            log_q = logits.log_softmax(-1)
            expected = kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
            assert found.token_ids == answer
            assert found.kl_nats == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-5)
            assert found.same_top1 == (logits.argmax(-1) == full.argmax(-1)).tolist()
            at = torch.arange(len(answer)), torch.tensor(answer)
            assert found.logprob == pytest.approx(log_q[at].tolist(), rel=1e-3, abs=1e-4)
            assert found.full_logprob == pytest.approx(log_p[at].tolist(), rel=1e-3, abs=1e-4)
            if press == "none":
                assert max(found.kl_nats or [1]) < 1e-9
            else:
                assert found.kv is not None
                asked = found.request.point.kept_tokens(found.request.entry.compressed_tokens)
                assert found.kv.entries_effective == pytest.approx(asked, abs=1)
    for press in PRESSES:  # they drop something that matters
        assert (
            max(max(f.kl_nats or [0]) for (name, _), f in together.items() if name == press) > 0.1
        )
    real, alone = Comparison._together, []

    def crowded(
        self: Comparison, example: Any, requests: Sequence[Request], by_itself: bool
    ) -> Any:
        if len(requests) > 1:
            alone.append(len(requests))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, example, requests, by_itself)

    monkeypatch.setattr(Comparison, "_together", crowded)
    for other in (compared(works), compared(works_of(tmp_path, "engine.share=false"))):
        assert other.keys() == together.keys()
        for key, found in other.items():
            assert found.token_ids == together[key].token_ids
            assert found.kl_nats == pytest.approx(together[key].kl_nats, rel=1e-3, abs=1e-6)
    assert alone


def test_an_experiment_without_answers_is_compared_resumed_and_reported(kvx: Kvx) -> None:
    sweep = ("-m", "press=knorm", "budget=1.0,0.2", *SMALL, "dataset.sampling.n_per_bin=4")
    first = kvx("run", *sweep, "measure=fidelity", "fidelity.n_per_bin=1")
    assert first.code == 0, first.err
    paths = sorted(RUN.glob("points/*/fidelity.parquet"))
    before = pd.concat([pq.read_table(p).to_pandas() for p in paths])
    assert len(before) == 2 * 3
    assert not list(RUN.glob("points/*/requests.parquet"))

    later = kvx("all", *sweep, "measure=fidelity")
    assert later.code == 0, later.err
    rows = pd.concat([pq.read_table(p).to_pandas() for p in paths])
    assert pq.read_schema(paths[0]).equals(fidelity_schemas.FIDELITY)
    assert len(rows) == 2 * 12
    known = before.set_index("request_id")["finished_at"]
    assert rows.set_index("request_id").loc[known.index, "finished_at"].equals(known)
    assert "nothing to do" in kvx("run", *sweep, "measure=fidelity").err

    stats = pq.read_table(RUN / "fidelity_stats.parquet").to_pandas()
    whole = stats[(stats["position_low"] == 1) & stats["position_high"].isna()]
    for _, row in whole.iterrows():
        own = rows[rows["point_id"] == row["point_id"]]
        own = own if row["bin"] == -1 else own[own["bin"] == row["bin"]]
        kl, same = (
            np.concatenate([*own["kl_nats"]]).astype(float),
            np.concatenate([*own["same_top1"]]),
        )
        lost = np.concatenate([*own["full_logprob"]]) - np.concatenate([*own["logprob"]])
        assert row["n_tokens"] == len(kl)
        assert row["n_prompts"] == len(own)
        assert row["kl_nats"] == pytest.approx(kl.mean(), rel=1e-6)
        assert row["agreement"] == pytest.approx(same.mean())
        assert row["perplexity_ratio"] == pytest.approx(np.exp(lost.astype(float).mean()), rel=1e-6)
        assert row["same_answer"] == pytest.approx(np.mean([all(x) for x in own["same_top1"]]))
        if row["budget"] == 1.0:
            assert (row["kl_nats"], row["agreement"], row["same_answer"]) == (0, 1, 1)
        elif row["bin"] == -1:
            assert row["kl_nats_ci_low"] < row["kl_nats"] < row["kl_nats_ci_high"]
            assert row["agreement"] < 1
    low = stats[(stats["bin"] == -1) & (stats["budget"] < 1)].set_index("position_low")
    own = rows[rows["point_id"] == low["point_id"].iloc[0]]
    for start, end in ((1, 1), (2, 4)):
        part = (
            np.concatenate([kl[start - 1 : end] for kl in own["kl_nats"]])
            .astype(float)
            .astype(float)
        )
        cell = low[low["position_high"] == end].loc[start]
        assert cell["kl_nats"] == pytest.approx(part.mean(), rel=1e-6)
    text = (RUN / "report.md").read_text()
    assert "| knorm | 0.2 |" in text
    assert all((RUN / "plots" / f"fidelity_by_{by}.png").is_file() for by in ("budget", "position"))
    assert (RUN / "report.html").is_file()
    assert "only fidelity" in kvx("score", "measure=fidelity").err

    answered = kvx("all", *sweep, "measure=quality,fidelity", "analyze.n_boot=200")
    assert answered.code == 0, answered.err
    details = (RUN / "details.md").read_text()
    assert "## Fidelity" in details
    assert "plots/fidelity_by_budget.png" in details
    assert pd.concat([pq.read_table(p).to_pandas() for p in paths]).equals(rows)


@pytest.mark.parametrize(
    ("asked", "because"),
    [
        (
            ["engine=openai", "engine.base_url=http://x/v1"],
            "a server shows no logits along an answer",
        ),
        (["controller=rule_based"], "controller=rule_based has nothing to steer"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    kvx: Kvx, asked: list[str], because: str
) -> None:
    refused = kvx("run", "press=knorm", "budget=0.5", "measure=fidelity", *asked)
    assert refused.code == 2
    assert because in refused.err
    assert len(refused.err.strip().splitlines()) == 1
