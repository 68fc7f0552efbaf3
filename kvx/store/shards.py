"""Write Parquet files atomically with a pinned schema, and record what they were made from."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kvx.identity.hashing import package_digest
from kvx.store.atomic import write_bytes

INPUTS_KEY, CODE_KEY = b"kvx.inputs", b"kvx.code"


def write_table(
    path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema, inputs: str | None = None
) -> None:
    """Write `rows` with exactly `schema`; `inputs` is a hash of what they were made from.

    The digest of the code that made them is stored with it. Raises `pyarrow.ArrowInvalid` if a row
    does not fit the schema, `OSError` if the disk is full.
    """
    table = pa.Table.from_pylist(list(rows), schema=schema)
    write_arrow(path, table if inputs is None else stamped(table, inputs))


def stamped(table: pa.Table, inputs: str) -> pa.Table:
    """The table with the hash of what it was made from, and the digest of the code that did."""
    return table.replace_schema_metadata(
        {INPUTS_KEY: inputs.encode(), CODE_KEY: package_digest().encode()}
    )


def write_arrow(path: Path, table: pa.Table) -> None:
    """Write a table as it is. Raises `OSError` if the disk is full."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


def read_inputs(path: Path) -> str | None:
    """The `inputs` hash a table was written with; None if it is missing, unreadable or has none."""
    return _metadata(path).get(INPUTS_KEY)


def is_by_other_code(path: Path) -> bool:
    """Whether a table records its inputs, but other code of kvx made it."""
    found = _metadata(path)
    return INPUTS_KEY in found and found.get(CODE_KEY) != package_digest()


def _metadata(path: Path) -> dict[bytes, str]:
    try:
        found = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowInvalid):
        return {}
    return {key: found[key].decode() for key in (INPUTS_KEY, CODE_KEY) if key in found}
