"""The user's own jsonl, csv or parquet file, with a field mapping."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from kvx.data.example import Example
from kvx.data.files import existing, read_rows
from kvx.errors import UserError
from kvx.hashing import sha256_file, sha256_text

ROLES = ("id", "context", "question", "answers", "cluster")


@dataclass
class LocalSource:
    """Examples of a data file.

    `fields` maps id, context, question, answers, cluster to the file's column names (id and cluster
    are optional).
    """

    path: str
    fields: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = sorted(set(self.fields) - set(ROLES))
        if unknown:
            raise UserError(
                f"dataset.source.fields: unknown {', '.join(unknown)}; it maps {', '.join(ROLES)}"
            )

    def revision(self) -> str:
        path = existing(self.path, "set dataset.source.path to your data file")
        return f"local-{sha256_file(path)[:12]}"

    def examples(self) -> Iterator[Example]:
        path = existing(self.path, "set dataset.source.path to your data file")
        name = {role: self.fields.get(role, role) for role in ROLES}
        seen: set[str] = set()
        for number, row in enumerate(read_rows(path), 1):
            where = f"{path}: row {number}"
            for role in ("context", "question", "answers"):
                if name[role] not in row:
                    raise UserError(
                        f"{where}: no field {name[role]!r} for {role}; it has "
                        f"{', '.join(map(str, row))} (set dataset.source.fields.{role})"
                    )
            for role in ("context", "question"):
                if not str(row[name[role]] or "").strip():
                    raise UserError(f"{where}: empty {name[role]!r}; every example needs a {role}")
            answers = _answers(row[name["answers"]])
            if not answers:
                raise UserError(
                    f"{where}: no answers in {name['answers']!r}; every example needs one"
                )
            example_id = str(row.get(name["id"]) or f"row-{number:05d}")
            if example_id in seen:
                raise UserError(f"{where}: id {example_id!r} occurs twice; ids must be unique")
            seen.add(example_id)
            yield Example(
                example_id=example_id,
                context=str(row[name["context"]]),
                question=str(row[name["question"]]),
                answers=answers,
                cluster=str(
                    row.get(name["cluster"]) or sha256_text(str(row[name["context"]]))[:12]
                ),
            )


def _answers(value: Any) -> tuple[str, ...]:
    """A list, one string, or a string holding a JSON list (csv), without empty ones."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            value = [value]
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(str(v) for v in items if v is not None and str(v).strip())
