"""LongBench v2 (https://arxiv.org/abs/2412.15204), from its data.json or from the hub."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvx.data.example import Example
from kvx.data.files import Row, columns_of, existing_file, fingerprint, read_rows
from kvx.data.hub_files import commit, hub_file
from kvx.data.values import text
from kvx.errors import UserError
from kvx.identity.hashing import sha256_text

VERSION = "1"
FILE = "data.json"
HINT = f"set dataset.source.path to LongBench v2's {FILE}"
LETTERS = "ABCD"
LENGTHS, DIFFICULTIES = ("short", "medium", "long"), ("easy", "hard")
NEEDED = ("_id", "context", "question", "answer", *(f"choice_{letter}" for letter in LETTERS))
KEPT = ("domain", "sub_domain", "difficulty", "length")


@dataclass
class LongBenchV2Source:
    """Rows {_id, domain, difficulty, length, question, choice_A.. choice_D, answer, context}.

    They come from the file `path` (json, jsonl or parquet), or from `data.json` of the hub dataset
    `hub` at commit `hub_revision`. `length`, `difficulty` and `domain` leave out all other rows.
    The question holds its choices; the answer is a letter. A row's length, difficulty and domains
    are kept in `Example.meta`.
    """

    path: str | None = None
    hub: str = "zai-org/LongBench-v2"
    hub_revision: str | None = None
    length: str | None = None
    difficulty: str | None = None
    domain: str | None = None

    def __post_init__(self) -> None:
        for name, known in (("length", LENGTHS), ("difficulty", DIFFICULTIES)):
            if (given := getattr(self, name)) not in (None, *known):
                raise UserError(f"dataset.source.{name}={given}: choose from {', '.join(known)}")

    @staticmethod
    def identity_of(fields: dict[str, Any]) -> dict[str, Any]:
        """The fields that decide the examples; `revision` names the commit."""
        return {k: v for k, v in fields.items() if k != "hub_revision" and v is not None}

    def revision(self) -> str:
        if self.path:
            return f"longbench-v2-{VERSION}-{fingerprint(existing_file(self.path, HINT))[:12]}"
        return f"longbench-v2-{VERSION}-{self.hub}@{commit(self.hub, self.hub_revision)}"

    def examples(self) -> Iterator[Example]:
        file = self._file()
        wanted = {"length": self.length, "difficulty": self.difficulty, "domain": self.domain}
        asked = {name: value for name, value in wanted.items() if value is not None}
        there: dict[str, set[str]] = {name: set() for name in asked}
        found = 0
        for number, row in enumerate(read_rows(file), 1):
            at = f"{file}: row {number}"
            if missing := [name for name in (*NEEDED, *asked) if name not in row]:
                raise UserError(
                    f"{at}: not LongBench v2's layout: no {missing[0]!r}; it has {columns_of(row)}"
                )
            for name in asked:
                there[name].add(str(row[name]))
            if all(row[name] == value for name, value in asked.items()):
                found += 1
                yield _example(row, at)
        if not found:
            name, value = next(iter(asked.items()))
            others = ", ".join(sorted(there[name]))
            raise UserError(
                f"dataset.source.{name}={value}: no such row in {file}; it has {others}"
            )

    def _file(self) -> Path:
        if self.path:
            return existing_file(self.path, HINT)
        return hub_file(self.hub, self.hub_revision, FILE, HINT)


def _example(row: Row, at: str) -> Example:
    cells = {name: text(row[name], f"{at}: {name!r}").strip() for name in NEEDED}
    choices = "\n".join(f"({letter}) {cells[f'choice_{letter}']}" for letter in LETTERS)
    return Example(
        example_id=cells["_id"],
        context=cells["context"],
        question=f"{cells['question']}\nChoices:\n{choices}",
        answers=(cells["answer"],),
        cluster=sha256_text(cells["context"])[:12],
        meta={name: row[name] for name in KEPT if row.get(name) is not None},
    )
