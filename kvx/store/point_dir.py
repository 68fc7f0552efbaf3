"""One point's directory: what is there, what is missing, and when it is complete.

point.json                        configuration, manifest and provenance
requests-<writer>-00000.parquet   one row per request, while the point is worked on
traces-<writer>-00000.parquet     per-token signals of the same requests
events-<writer>-00000.parquet     what a controller did to them
latency-<writer>-00000.parquet    one row per request that ran alone
fidelity-<writer>-00000.parquet   one row per request compared with the full cache
requests.parquet ...              all of a kind in the manifest's order, once nothing is missing
DONE                              these files, their sizes and checksums
FAILED                            why the point could not go on
NOT_APPLICABLE                    why its press cannot be used on its model; nothing was run
quarantine/                       files that could not be read
"""

import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kvx.config.identity import is_guarded, resolved
from kvx.data.tokenizer import model_hash
from kvx.engines.base import Fidelity, Measurement, Response
from kvx.errors import UserError
from kvx.identity import provenance
from kvx.points import Point, budget_label, guard_identity, request_id
from kvx.store import completion, contents, fidelity_schemas, layout, locks, merge, schemas
from kvx.store.atomic import write_text
from kvx.store.contents import SCHEMAS, UnreadableError
from kvx.store.layout import (
    ANSWERS,
    BESIDE,
    EVENTS,
    FIDELITY,
    KINDS,
    LATENCY,
    REQUESTS,
    TRACES,
    Done,
    Present,
)
from kvx.store.records import event_rows, fidelity_row, latency_row, request_row, trace_row
from kvx.store.shards import write_arrow, write_table

log = logging.getLogger(__name__)
FINISH_LOCK = ".finish.lock"


class PointStore:
    """Survives a kill of any of its writers at any moment.

    The parent of a run claims the point (`kvx.store.locks`) and asks `recover` what is there. Each
    worker has a unique writer's name: `resume`, any number of `write` and its like,
    `finish`, `close`.
    """

    def __init__(self, point: Point) -> None:
        self.point = point
        self.dir = point.dir
        self._writer = ""
        self._next = {REQUESTS: 0, LATENCY: 0, FIDELITY: 0}
        self._share: locks.Claim | None = None

    def recover(self) -> Present:
        """Prepare the directory for work; returns what is already there.

        The caller must hold the point's lock. Removes what killed writers left half written, moves
        unreadable or changed files to quarantine/ so that they are redone, and removes DONE if
        something is missing. Raises `UserError` if the point was run with another manifest.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        completion.check_manifest(self.point)
        (self.dir / layout.NOT_APPLICABLE).unlink(
            missing_ok=True
        )  # by an older kvx or transformers
        for unfinished in self.dir.glob(".*.tmp"):
            unfinished.unlink()
        if (self.dir / "FAILED").exists():  # what a failed point measured cannot be trusted
            stale = map(self.dir.joinpath, ("DONE", "point.json", "FAILED"))
            for path in (*self.dir.glob("*.parquet"), *stale):
                path.unlink(missing_ok=True)
        is_done = False
        if (done := layout.read_done(self.dir)) is not None:
            changed = layout.changed(self.dir, done)
            for name in changed:
                self._quarantine(self.dir / name, "it changed after the point finished")
            self._remove_merged_shards(done, changed)
            is_whole = not changed and completion.covers(self.point, done)
            is_done = is_whole and not completion.has_something_to_retry(self.point, done)
        if not is_done:
            (self.dir / "DONE").unlink(missing_ok=True)
            self._check_files()
            self._drop_failed()
        if not (self.dir / "point.json").exists():
            self._describe()
        elif not is_done:
            self._note_versions()
        return contents.present(self.dir)

    def set_aside(self, reason: str) -> None:
        """Note that the point is not applicable: nothing is run. The caller must hold its lock."""
        self.dir.mkdir(parents=True, exist_ok=True)
        completion.check_manifest(self.point)
        (self.dir / "FAILED").unlink(missing_ok=True)
        if not (self.dir / "point.json").exists():
            self._describe()
        write_text(self.dir / layout.NOT_APPLICABLE, reason + "\n")

    def resume(self, writer: str) -> Present:
        """Join the point as `writer`; returns what is there now, whoever wrote it.

        `writer` may have written before: its numbering goes on, and what it left half written is
        removed. Raises `UserError` if another run holds the point, or if no run has prepared it:
        then this worker computes another id than the process that sent it.
        """
        if not (self.dir / "point.json").exists():
            raise UserError(
                f"{self.dir}: no run has prepared this point; did kvx, the configuration or the "
                "model change after the job was submitted? type the command again"
            )
        self._share = locks.join(self.dir)
        self._writer = writer
        mine = f"{writer}-?????.parquet"
        for kind in KINDS:
            for unfinished in self.dir.glob(f".{kind}-{mine}.*.tmp"):
                unfinished.unlink()
        for path in (p for kind in BESIDE for p in self.dir.glob(f"{kind}-{mine}")):
            if not layout.requests_of(path).exists():
                path.unlink(missing_ok=True)  # its requests were never there
        for kind in self._next:
            taken = self.dir.glob(f"{kind}-{mine}")
            numbers = [int(path.stem.rsplit("-", 1)[1]) for path in taken]
            self._next[kind] = max(numbers, default=-1) + 1
        return contents.present(self.dir)

    def close(self) -> None:
        if self._share is not None:
            self._share.close()
            self._share = None

    def write(self, responses: Sequence[tuple[Response, datetime]]) -> None:
        """Write one new shard of requests, and of their traces and events.

        A killed write leaves nothing behind; one that is interrupted and repeated replaces itself.
        """
        path = self._shard(REQUESTS)
        traces = [row for response, _ in responses if (row := trace_row(response)) is not None]
        events = [row for response, _ in responses for row in event_rows(response)]
        for kind, rows in ((TRACES, traces), (EVENTS, events)):
            if rows:
                write_table(layout.beside(path, kind), rows, SCHEMAS[kind])
        write_table(path, [request_row(*item) for item in responses], schemas.REQUESTS)
        self._next[REQUESTS] += 1

    def write_latency(self, measurements: Sequence[tuple[Measurement, datetime]]) -> None:
        """Write one new shard of latencies."""
        rows = [latency_row(*item) for item in measurements]
        write_table(self._shard(LATENCY), rows, schemas.LATENCY)
        self._next[LATENCY] += 1

    def write_fidelity(self, compared: Sequence[tuple[Fidelity, datetime]]) -> None:
        """Write one new shard of requests that were compared with the full cache."""
        rows = [fidelity_row(*item) for item in compared]
        write_table(self._shard(FIDELITY), rows, fidelity_schemas.FIDELITY)
        self._next[FIDELITY] += 1

    def _shard(self, kind: str) -> Path:
        return self.dir / f"{kind}-{self._writer}-{self._next[kind]:05d}.parquet"

    def finish(self) -> str | None:
        """Merge all shards and mark the point complete, if nothing is missing.

        Any process may call this at any time. Returns why the point failed: before, or now because
        no request got a response.
        """
        if self._is_surely_unfinished():
            return layout.read_failed(self.dir)
        with locks.alone(self.dir / FINISH_LOCK):
            if (reason := layout.read_failed(self.dir)) is not None:
                return reason
            if layout.read_done(self.dir) is not None:
                return None
            # left by a killed holder of this lock
            for name in (*(f"{kind}.parquet" for kind in KINDS), "DONE", "FAILED"):
                for unfinished in self.dir.glob(f".{name}.*.tmp"):
                    unfinished.unlink(missing_ok=True)
            try:
                return self._merge()
            except UnreadableError as error:
                self._quarantine(error.path, str(error))
            except FileNotFoundError:
                log.debug("%s: merged by another process", self.dir)
        return None

    def fail(self, message: str) -> None:
        """Mark the point failed, whoever else works on it; its numbers will not be used."""
        with locks.alone(self.dir / FINISH_LOCK):
            self._fail(message)

    def _fail(self, message: str) -> None:
        write_text(self.dir / "FAILED", message + "\n")
        (self.dir / "DONE").unlink(missing_ok=True)

    def _is_surely_unfinished(self) -> bool:
        """A cheap check that spares most calls of `finish` from reading every shard."""
        asked = {
            REQUESTS: len(self.point.manifest.entries) if self.point.wants_answers else 0,
            LATENCY: len(self.point.latency_items),
            FIDELITY: len(self.point.fidelity_entries),
        }
        try:
            return any(
                sum(map(contents.count_rows, layout.files(self.dir, kind))) < n
                for kind, n in asked.items()
                if n
            )
        except (UnreadableError, FileNotFoundError):
            return False

    def _merge(self) -> str | None:
        point = self.point
        ids = [request_id(point.id, e.example_id) for e in point.manifest.entries]
        answers, latency = merge.answers(self.dir, ids), merge.latency(self.dir, ids)
        measured, compared = _repeats(latency), merge.fidelity(self.dir, ids)
        examples = compared["example_id"].to_pylist()
        if point.wants_answers and answers is None:
            return None
        if not completion.covers_latency(point, measured):
            return None
        if not completion.covers_fidelity(point, examples):
            return None
        failed = {LATENCY: _n_failed(latency), FIDELITY: _n_failed(compared)}
        responses = 0 if answers is None else answers.responses
        beside = pa.concat_tables([t.select(["error_message"]) for t in (latency, compared)])
        lost = beside.num_rows == sum(failed.values())
        if responses == 0 and (answers is not None or lost):
            reason = _first_error(beside if answers is None else answers.requests)
            self._fail(f"every request failed ({reason})")
            return layout.read_failed(self.dir)
        merged: dict[str, pa.Table] = {}
        if answers is not None:
            # requests last: the others do not count without them, so a kill loses nothing
            if answers.traces.num_rows:
                merged[TRACES] = answers.traces
            if is_guarded(point.config):
                merged[EVENTS] = answers.events
            merged[REQUESTS] = answers.requests
        # what this run did not ask for, and none has completed, waits in its shards
        asked = {LATENCY: point.wants_latency, FIDELITY: point.wants_fidelity}
        for kind, table in ((LATENCY, latency), (FIDELITY, compared)):
            if asked[kind] or layout.merged(self.dir, kind).exists():
                merged[kind] = table
        # what is merged and got no more shards stays as it is
        added = {k for k in (REQUESTS, LATENCY, FIDELITY) if layout.shards(self.dir, k)}
        for kind, table in merged.items():
            path, main = layout.merged(self.dir, kind), REQUESTS if kind in ANSWERS else kind
            if main in added or not path.exists():
                write_arrow(path, table)
        layout.write_done(
            self.dir,
            merged,
            requests=0 if answers is None else answers.requests.num_rows,
            without_response=0 if answers is None else answers.requests.num_rows - responses,
            latency=measured if LATENCY in merged else {},
            latency_failed=failed[LATENCY] if LATENCY in merged else 0,
            fidelity=examples if FIDELITY in merged else [],
            fidelity_failed=failed[FIDELITY] if FIDELITY in merged else 0,
        )
        if (done := layout.read_done(self.dir)) is not None:
            self._remove_merged_shards(done, ())
        return None

    def _remove_merged_shards(self, done: Done, changed: Sequence[str]) -> None:
        """Delete shards whose rows are in an unchanged merged file."""
        for kinds in (ANSWERS, (LATENCY,), (FIDELITY,)):
            names = [layout.merged(self.dir, kind).name for kind in kinds]
            if done.holds(kinds[0]) and not set(names) & set(changed):
                for shard in [s for kind in kinds for s in layout.shards(self.dir, kind)]:
                    shard.unlink(missing_ok=True)

    def _check_files(self) -> None:
        """Quarantine damaged files; remove traces and events without requests."""
        for path in (p for kind in BESIDE for p in layout.files(self.dir, kind)):
            if not layout.requests_of(path).exists():
                path.unlink()
        for kind in KINDS:
            for path in layout.files(self.dir, kind):
                try:
                    contents.read(path, kind)
                except UnreadableError as error:
                    self._quarantine(path, str(error))

    def _drop_failed(self) -> None:
        """With `run.retry_failed`, remove the rows without a result, so that they are redone."""
        if not self.point.config.run.retry_failed:
            return
        asked = {
            REQUESTS: self.point.wants_answers,
            LATENCY: self.point.wants_latency,
            FIDELITY: self.point.wants_fidelity,
        }
        for kind, path in [(k, p) for k in asked if asked[k] for p in layout.files(self.dir, k)]:
            table = contents.read(path, kind)
            kept = table.filter(pc.is_null(table["error_type"]))
            if kept.num_rows < table.num_rows:
                write_arrow(path, kept)

    def _quarantine(self, path: Path, reason: str) -> None:
        """Move a file aside (requests with what lies beside them), so that it is redone."""
        kind = path.stem.partition("-")[0]
        folder = self.dir / "quarantine"
        folder.mkdir(exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        for other in ANSWERS if kind in ANSWERS else (kind,):
            file = path.with_name(other + path.name.removeprefix(kind))
            if file.exists():
                log.warning("run: %s is corrupt (%s); quarantined and redone", file, reason)
                file.rename(folder / f"{file.stem}.{stamp}.parquet")

    def _note_versions(self) -> None:
        """Note that what is missing is made with other libraries than what is there."""
        path, here = self.dir / "point.json", provenance.versions()
        info = json.loads(path.read_text())
        known = [info["provenance"]["versions"], *info.get("resumed_with", [])]
        if not any(all(v.get(n) == here.get(n) for n in provenance.OF_TOKENS) for v in known):
            info["resumed_with"] = [*known[1:], here]
            write_text(path, json.dumps(info, indent=1) + "\n")

    def _describe(self) -> None:
        point, config, kind = self.point, self.point.config, self.point.config.budget.kind.name
        described: dict[str, Any] = {
            "id": point.id,
            "variant_id": point.variant_id,
            "model": config.model.name,
            "model_path": config.model.path,
            "model_hash": model_hash(config.model),
            "dataset": point.manifest.dataset_id,
            "press": config.press.name,
            "budget_label": budget_label(config.budget),
            "budget_kind": kind,
            "budget": config.budget.ratio if kind == "ratio" else None,
            "budget_tokens": config.budget.tokens if kind == "tokens" else None,
            "controller": config.controller.name,
            "guard": guard_identity(config) if is_guarded(config) else None,
            "seed": config.seed,
            "engine": config.engine.name,
            "sources": point.sources,
            "metrics": config.dataset.metrics,
            "answer_format": config.dataset.answer_format,
            "until": config.dataset.until,
            "manifest": {
                "key": point.manifest.key,
                "sha256": point.manifest.sha256,
                "path": str(point.manifest_dir / "manifest.json"),
                "template_hash": point.manifest.template_hash,
                "date": point.manifest.date,
                "source_revision": point.manifest.source_revision,
                "n_requests": len(point.manifest.entries),
            },
            "config": resolved(config),
            "provenance": provenance.describe(),
        }
        write_text(self.dir / "point.json", json.dumps(described, indent=1) + "\n")


def _repeats(latency: pa.Table) -> dict[str, list[int]]:
    """The repeats of each example in a table of latencies."""
    found: dict[str, list[int]] = defaultdict(list)
    for row in latency.select(["example_id", "repeat"]).to_pylist():
        found[row["example_id"]].append(row["repeat"])
    return dict(found)


def _n_failed(table: pa.Table) -> int:
    return int(table.num_rows - table["error_message"].null_count)


def _first_error(table: pa.Table) -> Any:
    return next((m for m in table["error_message"].to_pylist() if m is not None), "no request")
