"""Which files a point's directory holds, and which of them count.

While a point is worked on, each writer adds its own shards (`requests-<writer>-00000.parquet`).
When nothing is missing they are merged into one file per kind (`requests.parquet`), and DONE names
those files; from then on only they count.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvx.identity.hashing import sha256_file
from kvx.store.atomic import write_text

REQUESTS, TRACES, EVENTS, LATENCY = "requests", "traces", "events", "latency"
FIDELITY = "fidelity"
# written together with requests, and useless without them
BESIDE = (TRACES, EVENTS)
ANSWERS = (REQUESTS, *BESIDE)
KINDS = (*ANSWERS, LATENCY, FIDELITY)
NOT_APPLICABLE = "NOT_APPLICABLE"


@dataclass(frozen=True)
class Done:
    """What DONE says: how much was measured, and in which files.

    `latency` holds the repeats of each example that ran alone, `fidelity` the examples that were
    compared with the full cache (a point of an older kvx has none); `files` the size, mtime_ns and
    sha256 of each merged file by its name. A kind without a file there was not completed.
    """

    requests: int
    without_response: int
    latency: dict[str, list[int]]
    latency_failed: int
    finished_at: str
    files: dict[str, dict[str, Any]]
    fidelity: list[str] = field(default_factory=list)
    fidelity_failed: int = 0

    def holds(self, kind: str) -> bool:
        return f"{kind}.parquet" in self.files


@dataclass(frozen=True)
class Present:
    """What is there: request ids, (request id, repeat) of latencies, request ids of fidelity."""

    request_ids: set[str]
    latency: set[tuple[str, int]]
    fidelity: set[str] = field(default_factory=set)


def merged(folder: Path, kind: str) -> Path:
    return folder / f"{kind}.parquet"


def shards(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.glob(f"{kind}-*.parquet"))


def files(folder: Path, kind: str) -> list[Path]:
    """The files that count, the merged one first; empty if there are none."""
    path = merged(folder, kind)
    main = REQUESTS if kind in BESIDE else kind
    if (done := read_done(folder)) is not None and (done.holds(kind) or done.holds(main)):
        return [path] if done.holds(kind) else []
    return [*([path] if path.exists() else []), *shards(folder, kind)]


def beside(requests: Path, kind: str) -> Path:
    """The file of `kind` (traces or events) that was written together with a file of requests."""
    return requests.with_name(kind + requests.name.removeprefix(REQUESTS))


def requests_of(path: Path) -> Path:
    """The requests that a file of traces or events belongs to."""
    kind = path.stem.partition("-")[0]
    return path.with_name(REQUESTS + path.name.removeprefix(kind))


def read_done(folder: Path) -> Done | None:
    """None for a point that is not finished, or whose DONE is of another version."""
    try:
        return Done(**json.loads((folder / "DONE").read_text()))
    except (OSError, json.JSONDecodeError, TypeError):
        return None


def read_failed(folder: Path) -> str | None:
    """Why the point failed; None if it did not."""
    try:
        return (folder / "FAILED").read_text().strip()
    except FileNotFoundError:
        return None


def read_not_applicable(folder: Path) -> str | None:
    """Why the point's press cannot be used on its model; None if it can, or is not known yet."""
    try:
        return (folder / NOT_APPLICABLE).read_text().strip()
    except FileNotFoundError:
        return None


def write_done(
    folder: Path,
    kinds: Iterable[str],
    requests: int,
    without_response: int,
    latency: dict[str, list[int]],
    latency_failed: int,
    fidelity: list[str],
    fidelity_failed: int,
) -> None:
    """Mark the point complete: the merged files of `kinds` are all of it."""
    names = {}
    for path in (merged(folder, kind) for kind in kinds):
        stat = path.stat()
        names[path.name] = {
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
            "sha256": sha256_file(path),
        }
    at = datetime.now(UTC).isoformat(timespec="seconds")
    done = Done(
        requests, without_response, latency, latency_failed, at, names, fidelity, fidelity_failed
    )
    write_text(folder / "DONE", json.dumps(asdict(done)) + "\n")


def changed(folder: Path, done: Done) -> list[str]:
    """Names of the files that are gone or not what DONE says.

    Equal size and mtime are trusted; the content is hashed only if they differ.
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
