"""The user's own jsonl, json, csv, tsv or parquet file, in a benchmark's layout or a mapped one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from kvx.data import row_examples
from kvx.data.example import Example
from kvx.data.files import existing_file, fingerprint, holds_only_text, read_rows
from kvx.data.layouts import AUTO

HINT = "set dataset.source.path to your data file"


@dataclass
class LocalSource:
    """Examples of a data file.

    `fields` maps id, context, question, answers, cluster, answer_prefix and max_new_tokens to the
    file's column names (only context, question and answers must exist); a column of null is not
    read. `layout` is one of `kvx.data.layouts.NAMES`. Questions that SQuAD 2 marks as unanswerable
    are left out, or have `unanswerable` as their answer.
    """

    path: str
    fields: dict[str, str | None] = field(default_factory=dict)
    layout: str = AUTO
    unanswerable: str | None = None

    def __post_init__(self) -> None:
        row_examples.check_fields(self.fields)
        row_examples.check_layout(self.layout)

    @staticmethod
    def identity_of(fields: dict[str, Any]) -> dict[str, Any]:
        """The fields that decide the examples; later fields only if they are set."""
        usual = {"layout": AUTO, "unanswerable": None}
        told = {k: v for k, v in fields.items() if k not in usual or v != usual[k]}
        columns = {**(told.get("fields") or {})}
        for role in ("answer_prefix", "max_new_tokens"):
            if columns.get(role) == role:
                del columns[role]
        return {**told, "fields": columns} if "fields" in told else told

    def revision(self) -> str:
        path = existing_file(self.path, HINT)
        digest = fingerprint(path)[:12]
        state = path.stat()
        read = (self.layout, tuple(sorted(self.fields.items())))
        alike = _reads_as_before(path.resolve(), state.st_size, state.st_mtime_ns, *read)
        return f"local-{digest}" if alike else f"local-{row_examples.VERSION}-{digest}"

    def examples(self) -> Iterator[Example]:
        path = existing_file(self.path, HINT)
        reading = row_examples.Reading(
            self.layout,
            self.fields,
            cells=holds_only_text(path),
            unanswerable=self.unanswerable,
        )
        return row_examples.examples(read_rows(path), str(path), reading)


@cache
def _reads_as_before(
    path: Path, size: int, mtime_ns: int, layout: str, fields: tuple[tuple[str, str | None], ...]
) -> bool:
    """Whether version 1 of this reader read the file alike, so that ids stay valid."""
    return layout == "auto" and row_examples.were_plain(
        read_rows(path), dict(fields), holds_only_text(path)
    )
