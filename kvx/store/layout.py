"""Which files a point's directory holds, which of them count, and what is in them.

While a point is worked on, each writer adds shards of its own (`requests-<writer>-00000.parquet`).
When nothing is missing they are merged into one file per kind (`requests.parquet`) and DONE names
those files; from then on only they count.
"""

import json
import logging
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kvx.hashing import sha256_file
from kvx.store import schemas
from kvx.store.shards import write_text

log = logging.getLogger(__name__)
REQUESTS, TRACES, LATENCY = "requests", "traces", "latency"
SCHEMAS = {REQUESTS: schemas.REQUESTS, TRACES: schemas.TRACES, LATENCY: schemas.LATENCY}
# a merge may take shards away between listing and reading them, and a network file system may show
# what came in their place late
SETTLE_S = 60.0


class UnreadableError(Exception):
    """A file that is not what a writer of this version leaves; the message says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path


@dataclass(frozen=True)
class Done:
    """What DONE says: how much was measured, and in which files.

    `latency` holds the repeats of each example that ran alone; `files` the size, mtime_ns and
    sha256 of each merged file by its name. A kind whose file is not named was not completed.
    """

    requests: int
    without_response: int
    latency: dict[str, list[int]]
    latency_failed: int
    finished_at: str
    files: dict[str, dict[str, Any]]

    def holds(self, kind: str) -> bool:
        return f"{kind}.parquet" in self.files


@dataclass(frozen=True)
class Present:
    """What is there already: request ids, and (request id, repeat) of latencies."""

    request_ids: set[str]
    latency: set[tuple[str, int]]


def merged(folder: Path, kind: str) -> Path:
    return folder / f"{kind}.parquet"


def shards(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"{kind}-*.parquet"))


def files(folder: Path, kind: str) -> list[Path]:
    """The files that count, the merged one first. Raises nothing: no file is an empty list."""
    path = merged(folder, kind)
    if (done := read_done(folder)) is not None and (done.holds(kind) or done.holds(_main(kind))):
        return [path] if done.holds(kind) else []
    return [*([path] if path.exists() else []), *shards(folder, kind)]


def _main(kind: str) -> str:
    return REQUESTS if kind == TRACES else kind


def traces_of(requests: Path) -> Path:
    """The traces written together with a file of requests."""
    return requests.with_name(TRACES + requests.name.removeprefix(REQUESTS))


def read_done(folder: Path) -> Done | None:
    """None for a point that is not finished, or was by a version that wrote another DONE."""
    try:
        return Done(**json.loads((folder / "DONE").read_text()))
    except (OSError, json.JSONDecodeError, TypeError):
        return None


def read_failed(folder: Path) -> str | None:
    """Why the point could not go on, if it failed."""
    try:
        return (folder / "FAILED").read_text().strip()
    except FileNotFoundError:
        return None


def write_done(
    folder: Path, kinds: Iterable[str], requests: int, without_response: int,
    latency: dict[str, list[int]], latency_failed: int,
) -> None:  # fmt: skip
    """Mark the point complete: the merged files of `kinds` are all of it."""
    names = {}
    for path in (merged(folder, kind) for kind in kinds):
        stat = path.stat()
        names[path.name] = {
            "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_file(path),
        }  # fmt: skip
    at = datetime.now(UTC).isoformat(timespec="seconds")
    done = Done(requests, without_response, latency, latency_failed, at, names)
    write_text(folder / "DONE", json.dumps(asdict(done)) + "\n")


def changed(folder: Path, done: Done) -> list[str]:
    """Names of the files that are gone or not what DONE says.

    Equal size and time of change are trusted; the content is only hashed if they differ.
    """
    found = []
    for name, was in done.files.items():
        try:
            stat = os.stat(folder / name)
        except OSError:
            found.append(name)
            continue
        touched = stat.st_mtime_ns != was["mtime_ns"]
        if stat.st_size != was["size"] or (touched and sha256_file(folder / name) != was["sha256"]):
            found.append(name)
    return found


def read(path: Path, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One file of `kind`.

    Raises `UnreadableError` for one that is damaged or has another schema, `FileNotFoundError` if
    it is gone.
    """
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(SCHEMAS[kind]):
                raise UnreadableError(path, "made by another version of kvx")
            return file.read(columns=columns)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableError(path, reason) from None


def count_rows(path: Path) -> int:
    """Rows of a file, from its last bytes alone. Raises what `read` does."""
    try:
        return int(pq.read_metadata(path).num_rows)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UnreadableError(path, str(error)) from None


def present(folder: Path) -> Present:
    """What is there now, whoever wrote it; files that cannot be read hold nothing.

    Raises `FileNotFoundError` if listed shards stay out of reach.
    """
    deadline, pause_s = time.monotonic() + SETTLE_S, 0.01
    while True:
        try:
            ids = _columns(folder, REQUESTS, ["request_id"])
            measured = _columns(folder, LATENCY, ["request_id", "repeat"])
            return Present({row[0] for row in ids}, {(row[0], row[1]) for row in measured})
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 1.0)


def _columns(folder: Path, kind: str, columns: list[str]) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for path in files(folder, kind):
        try:
            table = read(path, kind, columns)
        except UnreadableError as error:
            log.warning("%s cannot be read (%s)", path, error)
            continue
        except FileNotFoundError:
            if path != merged(folder, kind):
                raise
            log.warning("%s is gone", path)  # not by a merge: those replace it in one step
            continue
        rows += zip(*(table[name].to_pylist() for name in columns), strict=True)
    return rows
