"""Read the files of a point's directory."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kvx.errors import UserError, first_line
from kvx.store import fidelity_schemas, layout, schemas
from kvx.store.layout import EVENTS, FIDELITY, LATENCY, REQUESTS, TRACES, Present

log = logging.getLogger(__name__)
SCHEMAS = {
    REQUESTS: schemas.REQUESTS,
    TRACES: schemas.TRACES,
    EVENTS: schemas.EVENTS,
    LATENCY: schemas.LATENCY,
    FIDELITY: fidelity_schemas.FIDELITY,
}
SETTLE_S = 60.0  # until a network file system shows the result of a merge that removed shards


class UnreadableError(Exception):
    """A file that this version's writers would not leave; the message says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file as it is, or those of `columns` that it has.

    Raises `UserError` naming a file that cannot be read.
    """
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns if columns is None else list(columns))
    except PermissionError:
        raise UserError(f"{path}: cannot be read (permission denied)") from None
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); run the same kvx.run again to redo it"
        ) from None


def read(path: Path, kind: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One file of `kind`; columns that an older kvx did not write are null.

    Raises `UnreadableError` for a damaged file or another schema, `FileNotFoundError` if it is
    gone.
    """
    wanted = SCHEMAS[kind]
    try:
        with pq.ParquetFile(path) as file:
            found = file.schema_arrow
            lacking = {f.name for f in wanted if f.nullable} - set(found.names)
            if not found.equals(pa.schema([f for f in wanted if f.name not in lacking])):
                raise UnreadableError(path, "made by another version of kvx")
            names = wanted.names if columns is None else list(columns)
            table = file.read(columns=[n for n in names if n not in lacking])
            for name in lacking.intersection(names):
                nulls = pa.nulls(table.num_rows, wanted.field(name).type)
                table = table.append_column(wanted.field(name), nulls)
            return table.select(names)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise UnreadableError(path, first_line(error)) from None


def count_rows(path: Path) -> int:
    """Rows of a file, from its footer alone. Raises what `read` does."""
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
            compared = _columns(folder, FIDELITY, ["request_id"])
            return Present(
                {row[0] for row in ids},
                {(row[0], row[1]) for row in measured},
                {row[0] for row in compared},
            )
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
            log.warning("%s is gone", path)  # not by a merge, which replaces it in one step
            continue
        rows += zip(*(table[name].to_pylist() for name in columns), strict=True)
    return rows
