"""Seconds to score, analyse and report a large experiment, and to look at its state.

The experiment is written through kvx's store as a run would write it, but the answers are drawn
instead of generated: right, half right, wrong, truncated or missing, worse at small budgets.

    python scripts/bench_analyze.py                            500 points of 100 requests
    python scripts/bench_analyze.py --seeds 1 --per-bin 4 DIR  100 points of 20, kept in DIR
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from kvx.cli.command import run_stage
from kvx.config.schema import Config
from kvx.data.frozen_examples import load_examples
from kvx.data.sources.recall import RecallSource
from kvx.engines.base import KVUse, Measurement, Response, Timing, Trace
from kvx.points import Point, Request
from kvx.run.planning import plan
from kvx.store import journal, locks
from kvx.store.point_dir import PointStore

AT = datetime(2026, 1, 1, tzinfo=UTC)
KV_BYTES = 2048  # per token, of the embedded model


def sweep(folder: Path, seeds: int, per_bin: int, clustered: bool) -> list[str]:
    """The arguments of the run; writes the data file that it names."""
    metrics = "[qa_f1,exact_match]" if clustered else "[exact_match,qa_f1]"
    return [
        "-m", "press=knorm,keydiff,tova,random,streaming", "budget=range(0.05,1.05,0.05)",
        f"seed={','.join(map(str, range(seeds)))}", "measure=both", "dataset=local",
        f"dataset.source.path={_data(folder, 6 * per_bin, 4 if clustered else 1)}",
        f"dataset.sampling.n_per_bin={per_bin}", f"dataset.metrics={metrics}",
        "latency.n_per_bin=1", "latency.repeats=2",
    ]  # fmt: skip


def _data(folder: Path, n: int, per_cluster: int) -> Path:
    """`n` recall examples, each so many of them one cluster."""
    path = folder / "examples.jsonl"
    examples = RecallSource(n_examples=n, max_words=400).examples()
    rows = [
        {
            "id": e.example_id,
            "context": e.context,
            "question": e.question,
            "answers": list(e.answers),
            "cluster": f"c{i // per_cluster}",
        }
        for i, e in enumerate(examples)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_points(configs: list[Config]) -> None:
    """Everything a run of `configs` would leave behind."""
    points = plan(configs)
    journal.begin(points)
    for point in points:
        with locks.claim([point.dir]) as claim:
            store = PointStore(point)
            store.recover()
            claim.share()
            store.resume("s001of001-drawn")
            requests = [Request(point, entry) for entry in point.manifest.entries]
            store.write([(response, AT) for response in _responses(point, requests)])
            alone = [(Request(point, entry), repeat) for entry, repeat in point.latency_items]
            store.write_latency([(_measurement(*item), AT) for item in alone])
            store.finish()
            store.close()


def _responses(point: Point, requests: list[Request]) -> Iterator[Response]:
    examples = load_examples(point.manifest_dir)
    for request in requests:
        rng, budget = random.Random(request.id), point.config.budget.ratio
        hardness = random.Random(request.entry.example_id).random()  # the same at every point
        good = rng.random() < 0.95 - 0.8 * (1 - budget) ** 2 * (0.5 + hardness)
        answer = examples[request.entry.example_id].answers[0]
        text = answer if good else rng.choice([answer.split()[0], "nothing", "nothing", ""])
        if not good and rng.random() < 0.05:
            yield Response(request, None, error_type="TIMEOUT", error_message="drawn")
            continue
        ids = [rng.randrange(300) for _ in range(8)]
        n = request.entry.compressed_tokens
        kept = point.kept_tokens(n)
        yield Response(
            request,
            text,
            ids,
            finish_reason="stop" if good or rng.random() < 0.9 else "length",
            kv=KVUse(kept, kept, kept, *[KV_BYTES * kept] * 3, KV_BYTES * n, KV_BYTES * (kept + 8)),
            budget_verified=True,
            trace=Trace(ids, [-rng.random() for _ in ids], [rng.random() for _ in ids]),
        )


def _measurement(request: Request, repeat: int) -> Measurement:
    rng = random.Random(f"{request.id}/{repeat}")
    first, rest = 0.1 + 0.05 * rng.random(), 0.2 + 0.1 * rng.random()
    timing = Timing(first, first + rest, first, rest, rest / 7)
    return Measurement(request, repeat, timing, 8, 1 << 20, 1 << 28)


def seconds(folder: Path, *command: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", *command], cwd=folder, check=True)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", nargs="?", type=Path, help="kept if given")
    parser.add_argument("--seeds", type=int, default=5, help="100 points each")
    parser.add_argument("--per-bin", type=int, default=20, help="requests per bin, of 5 bins")
    parser.add_argument("--clustered", action="store_true", help="graded, four to a cluster")
    options = parser.parse_args()
    folder = (options.dir or Path(tempfile.mkdtemp())).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    arguments = sweep(folder, options.seeds, options.per_bin, options.clustered)
    paths = [f"paths.output={folder / 'outputs'}", f"paths.multirun={folder / 'multirun'}"]
    begun = time.perf_counter()
    if run_stage("run", [*arguments, *paths], write_points):
        sys.exit(1)
    print(f"write the experiment: {time.perf_counter() - begun:.1f} s", flush=True)
    for stage in ("score", "analyze", "report", "status", "plan", "run"):
        took = seconds(folder, f"kvx.{stage}", *arguments)
        print(f"kvx.{stage}: {took:.2f} s", flush=True)


if __name__ == "__main__":
    main()
