"""A large experiment whose answers are drawn instead of generated, written as a run writes it.

Every point goes through kvx's own store: claim, shards, merge, DONE. Answers are right, half
right, another example's, rambling, empty, truncated or missing, and worse at small budgets; some
responses loop. The examples' hardness is the same at every point, so that pairs are worth it.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvx.config.schema import Config
from kvx.data.frozen_examples import load_examples
from kvx.data.sources.recall import RecallSource
from kvx.engines.base import Measurement, Response, Timing
from kvx.points import Point, Request, request_id
from kvx.run.planning import plan
from kvx.store import journal, locks, schemas
from kvx.store.point_dir import PointStore
from kvx.store.records import request_row
from kvx.store.shards import write_arrow

AT = datetime(2026, 1, 1, tzinfo=UTC)
WRITER = "s001of001-drawn"
KV_BYTES = 2048  # per token, of the embedded model
WORDS = np.array(["it", "was", "said", "that", "the", "river", "Anna", "1912", "and", "not"])
PERIOD = 5  # tokens of a loop


@dataclass(frozen=True)
class Size:
    """100 points (5 presses × 20 budgets) a seed, each of `bins` × `per_bin` requests."""

    seeds: int
    bins: int
    per_bin: int
    clustered: bool = False  # graded scores first, four examples to a cluster

    @property
    def n_points(self) -> int:
        return 100 * self.seeds

    @property
    def n_requests(self) -> int:
        return self.n_points * self.bins * self.per_bin

    def arguments(self, folder: Path) -> list[str]:
        """Those of the run; writes the data file that they name."""
        metrics = "[qa_f1,exact_match]" if self.clustered else "[exact_match,qa_f1]"
        data = _data(folder, self.bins * self.per_bin * 6 // 5, 4 if self.clustered else 1)
        return [
            "-m", "press=knorm,keydiff,tova,random,streaming", "budget=range(0.05,1.05,0.05)",
            f"seed={','.join(map(str, range(self.seeds)))}", "measure=both", "dataset=local",
            f"dataset.source.path={data}", f"dataset.binning.n_bins={self.bins}",
            f"dataset.sampling.n_per_bin={self.per_bin}", f"dataset.metrics={metrics}",
            "latency.n_per_bin=1", "latency.repeats=2",
        ]  # fmt: skip


def _data(folder: Path, n: int, per_cluster: int) -> Path:
    """`n` recall examples, each so many of them one cluster."""
    path = folder / "examples.jsonl"
    if path.exists():
        return path
    examples = RecallSource(n_examples=n, max_words=400).examples()
    rows = (
        {
            "id": e.example_id,
            "context": e.context,
            "question": e.question,
            "answers": list(e.answers),
            "cluster": f"c{i // per_cluster}",
        }
        for i, e in enumerate(examples)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_points(configs: list[Config]) -> None:
    """Everything a run of `configs` would leave behind, per-token traces aside."""
    points = plan(configs)
    journal.begin(points)
    for number, point in enumerate(points):
        with locks.claim([point.dir]) as claim:
            store = PointStore(point)
            store.recover()
            claim.share()
            store.resume(WRITER)
            table = _requests(point, np.random.default_rng(number))
            write_arrow(point.dir / f"requests-{WRITER}-00000.parquet", table)
            alone = [(Request(point, entry), repeat) for entry, repeat in point.latency_items]
            store.write_latency([(_measurement(*item), AT) for item in alone])
            store.finish()
            store.close()


def _requests(point: Point, rng: np.random.Generator) -> pa.Table:
    """The point's rows of `requests`: what differs is drawn, the rest is as the store fills it."""
    entries = point.manifest.entries
    first = Request(point, entries[0])
    row = request_row(Response(first, "", [0], budget_verified=True), AT)
    lengths = np.array([entry.compressed_tokens for entry in entries])
    kept, reasons = _kept(point, lengths)
    answered, texts, ids = _answers(point, rng)
    n_ids = np.diff(ids.offsets.to_numpy())
    drawn: dict[str, Any] = {
        "request_id": [request_id(point.id, entry.example_id) for entry in entries],
        **{
            name: [getattr(entry, name) for entry in entries]
            for name in (
                "example_id", "cluster", "bin", "context_tokens", "prompt_tokens",
                "compressed_tokens", "context_tokens_cut",
            )
        },
        "has_response": answered, "text": pa.array(texts, pa.string(), mask=~answered),
        "token_ids": ids, "output_tokens": pa.array(n_ids, pa.int32(), mask=~answered),
        "finish_reason": pa.array(_endings(n_ids, rng), pa.string(), mask=~answered),
        "error_type": pa.array(["TIMEOUT"] * len(entries), pa.string(), mask=answered),
        "error_message": pa.array(["drawn"] * len(entries), pa.string(), mask=answered),
        "degenerate": [reason is not None for reason in reasons], "degenerate_reason": reasons,
        "kv_bytes_full": KV_BYTES * lengths, "kv_bytes_peak": KV_BYTES * (kept + 8),
        **{f"kv_entries_{n}": kept.astype(float) for n in ("nominal", "effective", "physical")},
        **{f"kv_bytes_{name}": KV_BYTES * kept for name in ("nominal", "effective", "physical")},
    }  # fmt: skip
    columns = [
        pa.array(drawn[f.name], f.type)
        if f.name in drawn
        else pa.repeat(pa.scalar(row.get(f.name), f.type), len(entries))
        for f in schemas.REQUESTS
    ]
    return pa.Table.from_arrays(columns, schema=schemas.REQUESTS)


def _kept(point: Point, lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], list[str | None]]:
    """Entries that the press keeps of each prompt, and why it is degenerate there, if it is."""
    distinct, where = np.unique(lengths, return_inverse=True)
    kept = np.array([point.kept_tokens(int(n)) for n in distinct])
    reasons = [point.degenerate_reason(int(n)) for n in distinct]
    return kept[where], [reasons[i] for i in where]


def _answers(
    point: Point, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], list[str], pa.ListArray]:
    """Which requests got a response, the texts, and the token ids of those that did."""
    examples, entries = load_examples(point.manifest_dir), point.manifest.entries
    n, lost = len(entries), 1 - float(point.config.budget.ratio)
    hardness = np.random.default_rng(0).random(n)  # the same at every point
    good = rng.random(n) < 0.95 - 0.8 * lost**2 * (0.5 + hardness)
    answered = good | (rng.random(n) > 0.05)
    right = [examples[entry.example_id].answers[0] for entry in entries]
    kind, other = rng.random(n), rng.integers(n, size=n)
    texts = [
        right[i] if good[i] else _wrong(right[i], right[other[i]], kind[i], rng) for i in range(n)
    ]
    n_ids = np.where(good, rng.integers(4, 12, n), rng.integers(8, 64, n)) * answered
    loops = ~good & (rng.random(n) < 0.1) & answered
    n_ids[loops] = 64
    ids = rng.integers(300, size=int(n_ids.sum()))
    starts = np.concatenate([[0], np.cumsum(n_ids)])
    for i in np.flatnonzero(loops):
        ids[starts[i] : starts[i + 1]] = np.resize(ids[starts[i] : starts[i] + PERIOD], 64)
    array = pa.ListArray.from_arrays(
        pa.array(starts, pa.int32()), pa.array(ids, pa.int32()), mask=pa.array(~answered)
    )
    return answered, texts, array


def _wrong(right: str, other: str, kind: float, rng: np.random.Generator) -> str:
    if kind < 0.25:
        return right.split()[0]
    if kind < 0.5:
        return other
    if kind < 0.75:
        return "nothing"
    if kind < 0.8:
        return ""
    return " ".join(WORDS[rng.integers(len(WORDS), size=12)])


def _endings(n_ids: NDArray[np.int64], rng: np.random.Generator) -> list[str]:
    """The longest responses stop at the cap, as a few others do."""
    capped = (n_ids >= 64) | (rng.random(len(n_ids)) < 0.02)
    return ["length" if one else "stop" for one in capped]


def _measurement(request: Request, repeat: int) -> Measurement:
    rng = np.random.default_rng([repeat, *request.id.encode()])
    first, rest = 0.1 + 0.05 * rng.random(), 0.2 + 0.1 * rng.random()
    timing = Timing(first, first + rest, first, rest, rest / 7)
    return Measurement(request, repeat, timing, 8, 1 << 20, 1 << 28)
