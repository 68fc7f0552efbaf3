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
from kvx.engines.base import Response
from kvx.errors import UserError
from kvx.hashing import sha256_file
from kvx.points import Point, Request, budget_label, resolved
from kvx.store import schemas
from kvx.store.shards import write_table, write_text

log = logging.getLogger(__name__)


def request_shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("requests-*.parquet"))


class PointStore:
    """Opened by one process at a time; what it holds survives a kill at any moment."""

    def __init__(self, point: Point) -> None:
        self.point = point
        self.dir = point.dir
        self._lock: IO[str] | None = None

    def is_done(self) -> bool:
        """Whether every request is there and every shard is what it was when the point finished."""
        try:
            done = json.loads((self.dir / "DONE").read_text())
        except (OSError, json.JSONDecodeError):
            return False
        self._check_manifest()
        bad = [
            name
            for name, checksum in done["shards"].items()
            if not (self.dir / name).is_file() or sha256_file(self.dir / name) != checksum
        ]
        for name in bad:
            log.warning(
                "run: %s is not what it was when the point finished; redoing it", self.dir / name
            )
        return not bad and done["requests"] == len(self.point.manifest.entries)

    def open(self) -> set[str]:
        """Lock the point and return the ids of the requests that are already there.

        Unreadable shards are moved to quarantine/, so that they are done again. Raises `UserError`
        if another process holds the lock or the point was run with another manifest.
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
        (self.dir / "DONE").unlink(missing_ok=True)
        if (self.dir / "FAILED").exists():  # what a failed point measured cannot be trusted
            for shard in [*request_shards(self.dir), *self.dir.glob("traces-*.parquet")]:
                shard.unlink()
            (self.dir / "FAILED").unlink()
        if not (self.dir / "point.json").exists():
            self._describe()
        return self._present()

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def write(self, responses: Sequence[tuple[Response, datetime]]) -> None:
        """One new shard of requests, and of their traces. A killed write leaves nothing behind."""
        taken = [int(p.stem.split("-")[1]) for p in request_shards(self.dir)]
        number = f"{max(taken, default=-1) + 1:05d}"
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

    def finish(self) -> str | None:
        """Mark the point complete; or failed, and why, if not one request got a response."""
        columns = ["has_response", "error_message"]
        table = pq.read_table(request_shards(self.dir), columns=columns)
        if not any(table["has_response"].to_pylist()):
            reason = f"every request failed ({table['error_message'][0].as_py()})"
            self.fail(reason)
            return reason
        shards = [*request_shards(self.dir), *sorted(self.dir.glob("traces-*.parquet"))]
        done = {
            "requests": table.num_rows,
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "shards": {p.name: sha256_file(p) for p in shards},
        }
        write_text(self.dir / "DONE", json.dumps(done, indent=1) + "\n")
        return None

    def fail(self, message: str) -> None:
        """Mark the point failed; its numbers will not be used."""
        write_text(self.dir / "FAILED", message + "\n")

    def _present(self) -> set[str]:
        """Request ids in readable shards; unreadable ones and orphaned traces are moved away."""
        present: set[str] = set()
        for shard in request_shards(self.dir):
            try:
                present |= set(pq.read_table(shard).column("request_id").to_pylist())
            except (pa.ArrowException, OSError, KeyError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                log.warning(
                    "run: %s is corrupt (%s); quarantined, its requests are redone", shard, reason
                )
                self._quarantine(shard)
        for trace in self.dir.glob("traces-*.parquet"):
            if not trace.with_name(trace.name.replace("traces", "requests")).exists():
                self._quarantine(trace)
                continue
            try:
                pq.read_table(trace)
            except (pa.ArrowException, OSError):
                self._quarantine(trace)
        return present

    def _quarantine(self, shard: Path) -> None:
        folder = self.dir / "quarantine"
        folder.mkdir(exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
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
