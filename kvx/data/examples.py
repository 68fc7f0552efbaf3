"""The examples that a manifest froze."""

import json
from functools import cache
from pathlib import Path

import pyarrow.parquet as pq

from kvx.data.example import Example


@cache
def load_examples(folder: Path) -> dict[str, Example]:
    """The manifest's examples by id, from examples.parquet."""
    rows = pq.read_table(folder / "examples.parquet").to_pylist()
    return {
        r["example_id"]: Example(
            r["example_id"], r["context"], r["question"], tuple(r["answers"]), r["cluster"],
            json.loads(r["meta_json"]),
        )
        for r in rows
    }  # fmt: skip
