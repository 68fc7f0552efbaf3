"""Reading rows from the user's own files, with errors that name the file and the line."""

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvx.errors import UserError

Row = dict[str, Any]


def existing(path: str | Path, hint: str) -> Path:
    """`path` as a Path; `UserError` with `hint` if it is not there."""
    found = Path(path).expanduser()
    if not found.exists():
        raise UserError(f"{found}: no such file or directory; {hint}")
    return found


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl or .jsonl.gz file."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not valid JSON ({error.msg}); fix or remove the line"
                ) from None
            if not isinstance(row, dict):
                raise UserError(
                    f"{path}:{number}: expected a JSON object, got {type(row).__name__}"
                )
            yield row


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a jsonl, csv or parquet file, told apart by its suffix.

    Raises `UserError` for a file that cannot be read as what its name says.
    """
    name = path.name.removesuffix(".gz")
    readers = {".jsonl": read_jsonl, ".json": read_jsonl, ".csv": _read_csv}
    readers[".parquet"] = _read_parquet
    reader = readers.get(Path(name).suffix)
    if reader is None or not path.is_file():
        raise UserError(f"{path}: unknown file type; use .jsonl, .jsonl.gz, .csv or .parquet")
    try:
        yield from reader(path)
    except (UnicodeDecodeError, csv.Error, EOFError, OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 31)  # contexts are long
    with path.open(newline="", encoding="utf-8-sig") as file:
        yield from csv.DictReader(file)


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq  # its ArrowInvalid is a ValueError

    yield from pq.read_table(path).to_pylist()
