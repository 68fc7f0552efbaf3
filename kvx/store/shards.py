"""Parquet files: a pinned schema in, all or nothing on disk, and what they were made from."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kvx.store.files import write_bytes

INPUTS_KEY = b"kvx.inputs"


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
