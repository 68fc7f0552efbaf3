"""Atomic Parquet files: written under a temporary name, fsynced, then renamed into place."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

INPUTS_KEY = b"kvx.inputs"


def _fsync_dir(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, data: bytes) -> None:
    """Replace `path` by `data` atomically; nothing is left behind if that fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _fsync_dir(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_table(
    path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema, inputs: str | None = None
) -> None:
    """Write `rows` with exactly `schema`; `inputs` is a hash of what they were made from.

    Raises `pyarrow.ArrowInvalid` if a row does not fit the schema, `OSError` if the disk is full.
    """
    table = pa.Table.from_pylist(list(rows), schema=schema)
    if inputs is not None:
        table = table.replace_schema_metadata({INPUTS_KEY: inputs.encode()})
    write_arrow(path, table)


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table as it is. Raises `OSError` if the disk is full."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


def read_inputs(path: Path) -> str | None:
    """The `inputs` hash a table was written with; None if it is missing, unreadable or has none."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return None
    value = metadata.get(INPUTS_KEY)
    return value.decode() if value is not None else None
