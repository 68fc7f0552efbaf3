"""The examples that a manifest froze."""

import json
from functools import lru_cache
from pathlib import Path

from kvx.data.example import Example
from kvx.errors import UserError, unreadable
from kvx.identity.file_hashes import sha256


def load_examples(folder: Path) -> dict[str, Example]:
    """The manifest's examples by id, as they are now. Raises `UserError` if they cannot be read."""
    path = examples_file(folder)
    return _load(path, sha256(path))


@lru_cache(maxsize=16)
def _load(path: Path, content: str) -> dict[str, Example]:
    import pyarrow.parquet as pq  # slow to import

    try:
        rows = pq.read_table(path, partitioning=None).to_pylist()
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    return {
        r["example_id"]: Example(
            r["example_id"],
            r["context"],
            r["question"],
            tuple(r["answers"]),
            r["cluster"],
            json.loads(r["meta_json"]),
            answer_prefix=r.get("answer_prefix"),
            max_new_tokens=r.get("max_new_tokens"),
            formatted=bool(r.get("formatted")),
        )
        for r in rows
    }


def examples_file(folder: Path) -> Path:
    """The examples of the manifest in `folder`. Raises `UserError` if they are missing."""
    path = folder / "examples.parquet"
    if not path.is_file():
        raise UserError(
            f"{path}: missing; copy it there, or make it again with kvx.prepare and the arguments "
            "of the run"
        )
    return path
