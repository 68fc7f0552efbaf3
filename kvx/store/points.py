"""One point's directory: shards, what is done, what is missing, and the lock on it.

point.json               configuration, manifest and provenance
requests-00000.parquet   one row per request (the truth)
traces-00000.parquet     per-token signals of the same requests
DONE                     the shards and their checksums, once nothing is missing
FAILED                   why the point could not go on
quarantine/              shards that could not be read
"""

import fcntl
import json
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from kvx import provenance
from kvx.data.tokenizer import model_hash
from kvx.engines.base import Response
from kvx.errors import UserError
from kvx.hashing import sha256_file
from kvx.points import Point, Request, budget_label, resolved
from kvx.store import schemas
from kvx.store.shards import write_table, write_text

log = logging.getLogger(__name__)


def request_shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("requests-*.parquet"))


def _number(shard: Path) -> str:
    """`00003` of requests-00003.parquet."""
    return shard.stem.split("-")[1]


class PointStore:
    """Opened by one process at a time; what it holds survives a kill at any moment."""

    def __init__(self, point: Point) -> None:
        self.point = point
        self.dir = point.dir
        self._lock: IO[str] | None = None
        self._next = 0

    def is_done(self) -> bool:
        """Whether every request is there and every shard is what it was when the point finished."""
        done = self._read_done()
        if done is None:
            return False
        self._check_manifest()
        changed = self._changed(done)
        for name in changed:
            log.warning("run: %s is corrupt: not what it was when the point finished", name)
        retry = self.point.config.run.retry_failed and done["without_response"] > 0
        return not changed and not retry

    def open(self) -> set[str]:
        """Lock the point and return the ids of the requests that are already there.

        Unreadable or changed shards are moved to quarantine/, so that they are done again. Raises
        `UserError` if another process holds the lock or the point was run with another manifest.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        self._lock = (self.dir / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{self.dir}: another process is working on this point; wait for it or stop it"
            ) from None
        self._check_manifest()
        for unfinished in self.dir.glob(".*.tmp"):  # of a process that was killed while writing
            unfinished.unlink()
        if (done := self._read_done()) is not None:
            for name in self._changed(done):
                self._quarantine(name.split("-")[1], "not what it was when the point finished")
            (self.dir / "DONE").unlink()
        if (self.dir / "FAILED").exists():  # what a failed point measured cannot be trusted
            for stale in [*self.dir.glob("*.parquet"), self.dir / "point.json"]:
                stale.unlink(missing_ok=True)
            (self.dir / "FAILED").unlink()
        if not (self.dir / "point.json").exists():
            self._describe()
        present = self._present()
        taken = [_number(p) for p in request_shards(self.dir)]
        self._next = max(map(int, taken), default=-1) + 1
        return present

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write(self, responses: Sequence[tuple[Response, datetime]]) -> None:
        """One new shard of requests, and of their traces.

        A killed write leaves nothing behind; one that is interrupted and repeated replaces itself.
        """
        number = f"{self._next:05d}"
        traces = [
            {
                "request_id": r.request.id, "token_ids": r.trace.token_ids,
                "logprob": r.trace.logprob, "entropy_nats": r.trace.entropy_nats,
            }
            for r, _ in responses
            if r.trace is not None
        ]  # fmt: skip
        if traces:
            write_table(self.dir / f"traces-{number}.parquet", traces, schemas.TRACES)
        rows = [_row(response, at) for response, at in responses]
        write_table(self.dir / f"requests-{number}.parquet", rows, schemas.REQUESTS)
        self._next += 1

    def finish(self) -> str | None:
        """Mark the point complete; or failed, and why, if not one request got a response."""
        columns = ["request_id", "has_response", "error_message"]
        table = pq.read_table(request_shards(self.dir), columns=columns)
        responses = sum(table["has_response"].to_pylist())
        if responses == 0:
            reason = f"every request failed ({table['error_message'][0].as_py()})"
            self.fail(reason)
            return reason
        shards = [*request_shards(self.dir), *sorted(self.dir.glob("traces-*.parquet"))]
        done = {
            "requests": table.num_rows,
            "without_response": table.num_rows - responses,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "shards": {p.name: sha256_file(p) for p in shards},
        }
        write_text(self.dir / "DONE", json.dumps(done, indent=1) + "\n")
        return None

    def fail(self, message: str) -> None:
        """Mark the point failed; its numbers will not be used."""
        write_text(self.dir / "FAILED", message + "\n")

    def _read_done(self) -> dict[str, Any] | None:
        try:
            done: dict[str, Any] = json.loads((self.dir / "DONE").read_text())
        except (OSError, json.JSONDecodeError):
            return None
        return done

    def _changed(self, done: dict[str, Any]) -> list[str]:
        """Shards that are gone or not what DONE says."""
        return [
            name
            for name, checksum in done["shards"].items()
            if not (self.dir / name).is_file() or sha256_file(self.dir / name) != checksum
        ]

    def _present(self) -> set[str]:
        """Ids of the requests in sound shards; what is not sound is moved away."""
        for trace in self.dir.glob("traces-*.parquet"):
            if not (self.dir / f"requests-{_number(trace)}.parquet").exists():
                trace.unlink()  # killed between the two: its requests were never there
        present: set[str] = set()
        for shard in request_shards(self.dir):
            try:
                table = pq.read_table(shard)
                trace = self.dir / f"traces-{_number(shard)}.parquet"
                if trace.exists():
                    pq.read_table(trace)
                ids = set(table.column("request_id").to_pylist())
            except (pa.ArrowException, OSError, KeyError) as error:
                self._quarantine(
                    _number(shard), (str(error) or type(error).__name__).splitlines()[0]
                )
                continue
            if ids & present:
                self._quarantine(_number(shard), "holds requests that another shard holds too")
                continue
            if self.point.config.run.retry_failed:
                ids = self._drop_failed(shard, table)
            present |= ids
        return present

    def _drop_failed(self, shard: Path, table: pa.Table) -> set[str]:
        """Take the requests without a response out of a shard; the ids that stay."""
        rows = table.to_pylist()
        kept = [row for row in rows if row["has_response"]]
        if len(kept) < len(rows):
            write_table(shard, kept, schemas.REQUESTS)
        return {row["request_id"] for row in kept}

    def _quarantine(self, number: str, reason: str) -> None:
        """Move a shard of requests and its traces aside, so that they are done again."""
        folder = self.dir / "quarantine"
        folder.mkdir(exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        number = number.removesuffix(".parquet")
        for shard in self.dir.glob(f"*-{number}.parquet"):
            log.warning("run: %s is corrupt (%s); quarantined and redone", shard, reason)
            shard.rename(folder / f"{shard.stem}.{stamp}.parquet")

    def _check_manifest(self) -> None:
        path = self.dir / "point.json"
        if not path.exists():
            return
        ran_with = json.loads(path.read_text())["manifest"]["sha256"]
        if ran_with != self.point.manifest.sha256:
            raise UserError(
                f"{path}: was run with another manifest ({ran_with[:8]}, now "
                f"{self.point.manifest.sha256[:8]}); delete {self.dir} or restore the manifest"
            )

    def _describe(self) -> None:
        point, config = self.point, self.point.config
        described: dict[str, Any] = {
            "id": point.id,
            "variant_id": point.variant_id,
            "model": config.model.name,
            "model_path": config.model.path,
            "model_hash": model_hash(config.model),
            "dataset": point.manifest.dataset_id,
            "press": config.press.name,
            "budget_label": budget_label(config.budget),
            "budget_kind": config.budget.kind.name,
            "budget": config.budget.ratio if config.budget.kind.name == "ratio" else None,
            "budget_tokens": config.budget.tokens if config.budget.kind.name == "tokens" else None,
            "controller": config.controller.name,
            "seed": config.seed,
            "engine": config.engine.name,
            "metrics": config.dataset.metrics,
            "answer_format": config.dataset.answer_format,
            "manifest": {
                "key": point.manifest.key,
                "sha256": point.manifest.sha256,
                "path": str(point.manifest_dir / "manifest.json"),
                "template_hash": point.manifest.template_hash,
                "source_revision": point.manifest.source_revision,
                "n_requests": len(point.manifest.entries),
            },
            "config": resolved(config),
            "provenance": provenance.describe(),
        }
        write_text(self.dir / "point.json", json.dumps(described, indent=1) + "\n")


def _row(response: Response, finished: datetime) -> dict[str, Any]:
    request: Request = response.request
    entry, timing, kv = request.entry, response.timing, response.kv
    reason = request.point.degenerate_reason(entry.compressed_tokens)
    row: dict[str, Any] = {
        "request_id": request.id, "point_id": request.point.id, "example_id": entry.example_id,
        "cluster": entry.cluster, "bin": entry.bin, "context_tokens": entry.context_tokens,
        "prompt_tokens": entry.prompt_tokens, "compressed_tokens": entry.compressed_tokens,
        "has_response": response.has_response, "budget_verified": response.budget_verified,
        "degenerate": reason is not None, "degenerate_reason": reason, "finished_at": finished,
        "text": response.text, "token_ids": response.token_ids,
        "output_tokens": None if response.token_ids is None else len(response.token_ids),
        "finish_reason": response.finish_reason, "error_type": response.error_type,
        "error_message": response.error_message, "peak_memory_bytes": response.peak_memory_bytes,
    }  # fmt: skip
    if timing is not None:
        row |= {
            "ttft_s": timing.ttft_s, "tpot_s": timing.tpot_s, "latency_s": timing.latency_s,
            "prefill_s": timing.prefill_s, "decode_s": timing.decode_s,
        }  # fmt: skip
    if kv is not None:
        row |= {
            "kv_entries_nominal": kv.entries_nominal, "kv_entries_effective": kv.entries_effective,
            "kv_entries_physical": kv.entries_physical, "kv_bytes_nominal": kv.bytes_nominal,
            "kv_bytes_effective": kv.bytes_effective, "kv_bytes_physical": kv.bytes_physical,
            "kv_bytes_full": kv.bytes_full, "kv_bytes_peak": kv.bytes_peak,
        }  # fmt: skip
    return row
