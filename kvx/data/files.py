"""Read rows from the user's own files, with errors that name the file and the line."""

import csv
import gzip
import hashlib
import io
import itertools
import json
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from kvx.data.values import from_json
from kvx.errors import UserError, unreadable
from kvx.identity.hashing import sha256_file

Row = dict[str, Any]

GZIP, UTF16 = b"\x1f\x8b", (b"\xff\xfe", b"\xfe\xff")
KINDS = ".jsonl, .json, .csv, .tsv (each also with .gz) or .parquet"
SHOWN_NAMES, SHOWN_CHARS = 8, 24


def existing(path: str | Path, hint: str) -> Path:
    """`path` as a Path; `UserError` with `hint` if it is missing or out of reach."""
    found = Path(path).expanduser()
    try:
        found.stat()
    except PermissionError as error:
        raise unreadable(found, error) from None
    except (OSError, ValueError):
        raise UserError(f"{found}: no such file or directory; {hint}") from None
    return found


def existing_file(path: str | Path, hint: str) -> Path:
    """`existing`, and a file."""
    found = existing(path, hint)
    if found.is_dir():
        raise UserError(f"{found}: is a directory; {hint}")
    return found


def fingerprint(path: Path) -> str:
    """SHA-256 of a data file. Raises `UserError` if it cannot be read."""
    try:
        return sha256_file(path)
    except OSError as error:
        raise unreadable(path, error) from None


def read_text(path: Path) -> str:
    """A text file. Raises `UserError` if it cannot be read as UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl or .jsonl.gz file, with or without a byte-order mark."""
    return _guarded(path, _json_lines)


def in_zip(archive: Path) -> list[str]:
    """The files in a zip file. Raises `UserError` if it is none."""
    try:
        with zipfile.ZipFile(archive) as file:
            return [info.filename for info in file.infolist() if not info.is_dir()]
    except (zipfile.BadZipFile, OSError) as error:
        raise unreadable(archive, error) from None


def zipped_fingerprint(archive: Path, member: str) -> str:
    """SHA-256 of a file in a zip file: that of the file unpacked."""
    with zipfile.ZipFile(archive) as file, file.open(member) as packed:
        return hashlib.file_digest(packed, "sha256").hexdigest()  # type: ignore[arg-type]


def read_zipped_jsonl(archive: Path, member: str) -> Iterator[Row]:
    """Rows of a jsonl file in a zip file."""

    def rows(archive: Path) -> Iterator[Row]:
        with zipfile.ZipFile(archive) as file, file.open(member) as packed:
            yield from _json_rows(io.TextIOWrapper(packed, "utf-8-sig"), archive / member)

    return _guarded(archive, rows)


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a jsonl, json, csv, tsv or parquet file, told apart by its suffix.

    A JSON document may be an array of objects or an object whose `data` is one. Raises `UserError`
    for a file that does not fit its suffix, and for one without rows.
    """
    readers = {
        ".jsonl": _read_json, ".ndjson": _read_json, ".json": _read_json, ".csv": _read_csv,
        ".tsv": _read_csv, ".parquet": _read_parquet,
    }  # fmt: skip
    suffix = _suffix(path)
    reader = readers.get(suffix)
    if reader is None or (suffix == ".parquet" and path.suffix == ".gz"):
        raise UserError(f"{path}: unknown file type; use {KINDS}")
    rows = _guarded(path, reader)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{path}: holds no rows")
    yield from itertools.chain([first], rows)


def holds_only_text(path: Path) -> bool:
    """Whether every cell of such a file is text, even a list."""
    return _suffix(path) in (".csv", ".tsv")


def columns_of(row: Row) -> str:
    """The names of a row's columns, for an error: the first few, each cut if it is long."""
    names = [" ".join(str(name).split()) for name in row]
    few = [n if len(n) <= SHOWN_CHARS else f"{n[:SHOWN_CHARS]}…" for n in names[:SHOWN_NAMES]]
    return ", ".join(few) + (f" and {len(names) - len(few)} more" if len(names) > len(few) else "")


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _guarded(path: Path, reader: Any) -> Iterator[Row]:
    try:
        yield from reader(path)
    except (csv.Error, EOFError, OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from None


def _open(path: Path, newline: str | None = None) -> IO[str]:
    """The file as UTF-8 text, unpacked if its name ends in .gz."""
    packed = path.suffix.lower() == ".gz"
    with gzip.open(path) if packed else path.open("rb") as file:
        start = file.read(2)
    if start in UTF16:
        raise UserError(f"{path}: is UTF-16; save it as UTF-8")
    if start == GZIP:
        raise UserError(f"{path}: is packed with gzip; let its name end in .gz")
    if packed:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline=newline)
    return path.open(encoding="utf-8-sig", newline=newline)


def _read_json(path: Path) -> Iterator[Row]:
    """JSON Lines, or one JSON document; the first line shows which."""
    with _open(path) as file:
        first = next((line for line in file if line.strip()), "")
    row = from_json(first) if first else {}
    if isinstance(row, dict) and not isinstance(row.get("data"), list) and not _by_column(row):
        yield from _json_lines(path)
        return
    with _open(path) as file:
        try:
            document = json.load(file)
        except json.JSONDecodeError as error:
            if row is None and first.lstrip().startswith("["):
                where = f"line {error.lineno}, column {error.colno}"
                raise UserError(f"{path}: not valid JSON ({error.msg}: {where})") from None
            document = None
    if document is None:
        yield from _json_lines(path)  # says which line is wrong
        return
    if isinstance(document, dict):
        if isinstance(document.get("data"), list):
            document = document["data"]
        elif _by_column(document):
            raise UserError(
                f"{path}: an object of objects ({columns_of(document)}), not rows; write a list "
                "of rows (pandas: to_json(orient='records', lines=True))"
            )
        else:
            document = [document]
    if not isinstance(document, list):
        raise UserError(f"{path}: expected rows, got {type(document).__name__}")
    for number, row in enumerate(document, 1):
        if not isinstance(row, dict):
            raise UserError(
                f"{path}: row {number}: expected a JSON object, got {type(row).__name__}"
            )
        yield row


def _by_column(document: Row) -> bool:
    """pandas' default: columns of rows, {context: {0: .., 1: ..}, ..}."""
    return bool(document) and all(isinstance(v, dict) for v in document.values())


def _json_lines(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        yield from _json_rows(file, path)


def _json_rows(file: IO[str], path: Path) -> Iterator[Row]:
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
            raise UserError(f"{path}:{number}: expected a JSON object, got {type(row).__name__}")
        yield row


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(1 << 31)  # contexts are long
    delimiter = "\t" if _suffix(path) == ".tsv" else ","
    with _open(path, newline="") as file:
        rows = csv.DictReader(_without_nul(file, path), delimiter=delimiter, strict=True)
        names = list(rows.fieldnames or [])
        _check_header(path, names, delimiter)
        for number, row in enumerate(rows, 1):
            if None in row:
                raise UserError(
                    f"{path}: row {number} has more cells than the header ({len(names)}); put "
                    "quotes around a cell that holds the separator"
                )
            yield row


def _without_nul(file: IO[str], path: Path) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if "\x00" in line:
            raise UserError(f"{path}:{number}: a NUL character; is this a text file?")
        yield line


def _check_header(path: Path, names: list[str], delimiter: str) -> None:
    twice = [name for name, n in Counter(names).items() if n > 1 and name]
    if twice:
        raise UserError(f"{path}: column {columns_of({twice[0]: 0})} occurs twice; rename one")
    for other, name in (("\t", "tabs"), (";", "semicolons"), (",", "commas")):
        if len(names) == 1 and other != delimiter and other in names[0]:
            use = "name it .tsv" if other == "\t" else "write commas"
            raise UserError(f"{path}: its columns are separated by {name}; {use}")


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq  # its ArrowInvalid is a ValueError

    # not `read_table`, which makes a column of a folder named epoch=3
    with pq.ParquetFile(path) as file:
        twice = [name for name, n in Counter(file.schema_arrow.names).items() if n > 1]
        if twice:
            raise UserError(f"{path}: column {twice[0]} occurs twice; rename one")
        for batch in file.iter_batches(batch_size=256):
            yield from batch.to_pylist()
