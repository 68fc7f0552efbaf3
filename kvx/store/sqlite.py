"""kv_transition.sqlite: an export of an experiment's Parquet files, which stay the only truth."""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pandas.api.types import infer_dtype

REQUEST = (
    "request_id", "point_id", "example_id", "bin", "context_tokens", "prompt_tokens",
    "compressed_tokens", "finished_at", "kv_entries_nominal", "kv_entries_effective",
    "kv_entries_physical", "kv_bytes_nominal", "kv_bytes_effective", "kv_bytes_physical",
    "kv_bytes_full", "kv_bytes_peak", "kv_compressed_share", "budget_verified", "degenerate",
    "degenerate_reason", "adapted", "made_with", "guard_mean_budget", "guard_decoded_tokens",
    "guard_recomputed_tokens",
    "guard_events", "guard_interventions", "guard_ms", "kv_bytes_host",
)  # fmt: skip
RESPONSE = (
    "request_id", "text", "finish_reason", "output_tokens", "reasoning", "reasoning_tokens",
)  # fmt: skip
ANSWER = ("has_response", *RESPONSE)


def export(
    path: Path, tables: dict[str, pd.DataFrame], rows: Mapping[str, Iterable[pa.Table]]
) -> None:
    """Write a new SQLite file that replaces the old one at once.

    `tables` are small; of `rows`, tables with equal columns, one part is held at a time.
    """
    with begun(path) as temporary:
        write_rows(temporary, rows)
        finish(temporary, path, tables)


@contextmanager
def begun(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` when it is finished; removed if it is not."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    leftovers = [temporary, temporary.with_name(f"{temporary.name}-journal")]
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    try:
        yield temporary
    finally:
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)


def write_rows(temporary: Path, rows: Mapping[str, Iterable[pa.Table]]) -> None:
    """Write the large tables, see `export`."""
    for name, parts in rows.items():
        _ingest(temporary, name, parts)


def finish(temporary: Path, path: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Write the small tables beside those of `write_rows`; then the file becomes `path`."""
    with sqlite3.connect(temporary) as connection:
        for name, frame in tables.items():
            _plain(frame).to_sql(name, connection, index=False)
    connection.close()
    temporary.rename(path)


def _ingest(path: Path, name: str, parts: Iterable[pa.Table]) -> None:
    """Write a table through Arrow's own driver: two microseconds for a row of 30 columns."""
    from adbc_driver_sqlite import dbapi

    with dbapi.connect(str(path), autocommit=False) as connection, connection.cursor() as cursor:
        for i, part in enumerate(parts):
            cursor.adbc_ingest(name, _storable(part), mode="append" if i else "create")
        connection.commit()


def _storable(table: pa.Table) -> pa.Table:
    """Times as ISO text, and every column nullable."""
    columns = {}
    for field in table.schema:
        column = table[field.name]
        if pa.types.is_timestamp(field.type):
            told = [None if at is None else at.isoformat() for at in column.to_pylist()]
            column = pa.array(told, pa.string())
        columns[field.name] = column
    return pa.table(columns)


def responses(requests: pa.Table) -> pa.Table:
    """The rows of `responses` among requests with the columns `ANSWER`."""
    return requests.filter(requests["has_response"]).select(list(RESPONSE))


def manifest_tables(
    manifests: Iterable[dict[str, Any]], examples: pd.DataFrame
) -> dict[str, pd.DataFrame]:
    """datasets, examples, bins and manifest_entries of the manifests an experiment uses."""
    datasets, bins, entries = [], [], []
    for manifest in manifests:
        key = manifest["key"]
        datasets.append(
            {k: v for k, v in manifest.items() if k not in ("bins", "entries", "sampling")}
        )
        bins += [{"manifest_key": key, **b} for b in manifest["bins"]]
        # a manifest omits the field where nothing was cut
        entries += [
            {"manifest_key": key, "context_tokens_cut": 0, **entry} for entry in manifest["entries"]
        ]
    return {
        "datasets": pd.DataFrame(datasets), "examples": examples, "bins": pd.DataFrame(bins),
        "manifest_entries": pd.DataFrame(entries),
    }  # fmt: skip


def _plain(frame: pd.DataFrame) -> pd.DataFrame:
    """Lists and dicts as JSON, times as ISO text: what SQLite can hold."""
    out = frame.copy()
    for name in out.columns:
        if isinstance(out[name].dtype, pd.DatetimeTZDtype):
            out[name] = out[name].map(lambda t: t.isoformat())
        elif out[name].dtype == object and infer_dtype(out[name]) not in ("string", "empty"):
            out[name] = out[name].map(_cell)
    return out


def _cell(value: Any) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return json.dumps(value) if isinstance(value, list | dict) else value
