"""What is in the files that a point's directory holds."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kvx.errors import UserError, first_line
from kvx.store import layout, schemas
from kvx.store.layout import EVENTS, LATENCY, REQUESTS, TRACES, Present

log = logging.getLogger(__name__)
SCHEMAS = {
    REQUESTS: schemas.REQUESTS, TRACES: schemas.TRACES, EVENTS: schemas.EVENTS,
    LATENCY: schemas.LATENCY,
}  # fmt: skip
# a merge may take shards away between listing and reading them, and a network file system may show
# what came in their place late
SETTLE_S = 60.0


class UnreadableError(Exception):
    """A file that is not what a writer of this version leaves; the message says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path


def read_table(path: Path) -> pa.Table:
    """A Parquet file as it is. Raises `UserError` naming a file that cannot be read."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except PermissionError:
        raise UserError(f"{path}: cannot be read (permission denied)") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); run the same kvx.run again to redo it"
        ) from None


def read(path: Path, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One file of `kind`; nulls in columns that an older kvx did not have.

    Raises `UnreadableError` for one that is damaged or has another schema, `FileNotFoundError` if
    it is gone.
    """
    wanted = SCHEMAS[kind]
    try:
        with pq.ParquetFile(path) as file:
            lacking = _lacking(file.schema_arrow, wanted)
            if lacking is None:
                raise UnreadableError(path, "made by another version of kvx")
            names = wanted.names if columns is None else list(columns)
            table = file.read(columns=[n for n in names if n not in lacking])
            return _filled(table, pa.schema([wanted.field(n) for n in names]))
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UnreadableError(path, first_line(error)) from None


def _lacking(found: pa.Schema, wanted: pa.Schema) -> set[str] | None:
    """The optional columns that `found` is without; None if it differs in anything else."""
    lacking = {f.name for f in wanted if f.nullable} - set(found.names)
    return (
        lacking if found.equals(pa.schema([f for f in wanted if f.name not in lacking])) else None
    )


def _filled(table: pa.Table, schema: pa.Schema) -> pa.Table:
    columns = [
        table[f.name] if f.name in table.column_names else pa.nulls(table.num_rows, f.type)
        for f in schema
    ]
    return pa.table(columns, schema=schema)


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
    for path in layout.files(folder, kind):
        try:
            table = read(path, kind, columns)
        except UnreadableError as error:
            log.warning("%s cannot be read (%s)", path, error)
            continue
        except FileNotFoundError:
            if path != layout.merged(folder, kind):
                raise
            log.warning("%s is gone", path)  # not by a merge: those replace it in one step
            continue
        rows += zip(*(table[name].to_pylist() for name in columns), strict=True)
    return rows
