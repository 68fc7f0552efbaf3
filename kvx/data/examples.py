"""The examples that a manifest froze."""

import json
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet as pq

from kvx.data.example import Example
from kvx.errors import UserError
from kvx.remembered import sha256


def load_examples(folder: Path) -> dict[str, Example]:
    """The manifest's examples by id, as they are now. Raises `UserError` if they are not there."""
    path = examples_file(folder)
    return _load(path, sha256(path))


@lru_cache(maxsize=16)
def _load(path: Path, content: str) -> dict[str, Example]:
    rows = pq.read_table(path).to_pylist()
    return {
        r["example_id"]: Example(
            r["example_id"], r["context"], r["question"], tuple(r["answers"]), r["cluster"],
            json.loads(r["meta_json"]),
        )
        for r in rows
    }  # fmt: skip


load_examples.cache_clear = _load.cache_clear  # type: ignore[attr-defined]  # as it was named before


def examples_file(folder: Path) -> Path:
    """The examples of the manifest in `folder`. Raises `UserError` if they are not there."""
    path = folder / "examples.parquet"
    if not path.is_file():
        raise UserError(
            f"{path}: missing; copy it beside the runs, or make it anew with kvx.prepare and the "
            "arguments of the run"
        )
    return path
