"""LongBench (https://arxiv.org/abs/2308.14508), from its own files or from the hub."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from kvx.data import row_examples
from kvx.data.example import Example
from kvx.data.files import (
    Row,
    columns_of,
    existing,
    fingerprint,
    in_zip,
    read_jsonl,
    read_zipped_jsonl,
    zipped_fingerprint,
)
from kvx.data.hub_files import commit, hub_file
from kvx.errors import UserError, first_line

VERSION = "1"
HUB = "Xnhyacinth/LongBench"
# the commit of `HUB` that kvpress's users measure with
HUB_REVISION = "2e9ade51ebf45d98942056c0716234f9d5d257d5"
FIELDS = {"id": "_id", "question": "input"}
FOLDER = "set dataset.source.path to a directory of LongBench's jsonl files, or to its data.zip"


@dataclass
class LongBenchSource:
    """Rows {input, context, answers, length, all_classes, _id, ..} of task `task`.

    They come from `path`: a directory with `<task>.jsonl`, itself or in its `data`, or LongBench's
    `data.zip`. Without it they come from the hub dataset `hub` at commit `hub_revision`: from its
    file `archive`, which is such a zip, or without `archive` as rows in kvpress's form (context,
    question, answer_prefix, answers, max_new_tokens), which contain LongBench's prompt, so that the
    dataset's template is not used. A `hub` of null asks for a `path`. `even` names LongBench-E, in
    `<task>_e.jsonl`. Without `row_limits`, `decoding.max_new_tokens` holds for all rows, and
    without `reads_input` a row's `input` is no part of the prompt, as LongBench asks for summaries.
    `all_classes` and, of LongBench-E,
    `length` (in words) are kept in `Example.meta`.
    """

    task: str
    path: str | None = None
    hub: str | None = HUB
    hub_revision: str | None = HUB_REVISION
    row_limits: bool = True
    archive: str | None = None
    even: bool = False
    reads_input: bool = True

    @staticmethod
    def identity_of(fields: dict[str, Any]) -> dict[str, Any]:
        """The fields that decide the examples; `revision` names the commit."""
        usual = {"row_limits": True, "archive": None, "even": False, "reads_input": True}
        told = {k: v for k, v in fields.items() if k not in usual or v != usual[k]}
        return {**told, "hub_revision": None}

    @property
    def name(self) -> str:
        """The name of the task's file, and of its configuration on the hub."""
        return f"{self.task}_e" if self.even else self.task

    def revision(self) -> str:
        if not self.path:
            hub, at = self._commit()
            return f"longbench-{row_examples.VERSION}-{hub}@{at}"
        place = self._place(self.path)
        asked = ({"input": row.get("question"), **row} for row in place.rows())
        version = VERSION if row_examples.were_plain(asked, FIELDS) else row_examples.VERSION
        return f"longbench-{version}-{place.fingerprint()[:12]}"

    def examples(self) -> Iterator[Example]:
        found = iter(self._rows())
        first = next(found, None)
        if first is None:
            return iter(())
        kvpress = "input" not in first and {"question", "answer_prefix"} <= set(first)
        layout = "kvpress" if kvpress else "longbench"
        if not kvpress and not {"context", "answers"} <= set(first):
            raise UserError(
                f"LongBench {self.name}: not LongBench's layout (input, context, answers, ..): it "
                f"has {columns_of(first)}"
            )
        fields: dict[str, str | None] = {} if self.row_limits else {"max_new_tokens": None}
        reading = row_examples.Reading(
            layout, fields, f"{self.task}-", "{:05d}", from_row=0,
            meta=("all_classes", "length") if self.even else ("all_classes",),
        )  # fmt: skip
        rows: Iterator[Row] = chain([first], found)
        if not kvpress and not self.reads_input:
            rows = ({**row, "input": ""} for row in rows)
        return row_examples.examples(rows, f"LongBench {self.name}", reading)

    def _rows(self) -> Iterator[Row]:
        if self.path:
            yield from self._place(self.path).rows()
            return
        hub, at = self._commit()
        if self.archive is not None:
            file = hub_file(hub, at, self.archive, FOLDER)
            yield from self._place(str(file)).rows()
            return
        import datasets

        try:
            yield from datasets.load_dataset(hub, self.name, split="test", revision=at)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"dataset.source.hub={hub}: could not load ({first_line(error)}); without "
                f"a hub, {FOLDER}"
            ) from None

    def _commit(self) -> tuple[str, str]:
        """The hub dataset and its commit. Raises `UserError` without the one or the other."""
        if self.hub is None:
            raise UserError(f"dataset.source.path=null: {FOLDER}")
        return self.hub, commit(self.hub, self.hub_revision)

    def _place(self, path: str) -> "_File | _Zipped":
        """Where the task's rows are. Raises `UserError` that lists the tasks that are there."""
        top, name = existing(path, FOLDER), f"{self.name}.jsonl"
        if not top.is_dir():
            files = [f for f in in_zip(top) if f.endswith(".jsonl") and "__MACOSX" not in f]
            member = next((f for f in files if Path(f).name == name), None)
            if member is None:
                raise UserError(f"{top}: holds no {name}; {_there(files)}")
            return _Zipped(top, member)
        folder = top if (top / name).is_file() or not (top / "data").is_dir() else top / "data"
        file = folder / name
        if not file.is_file():
            raise UserError(f"{file}: no such file; {_there(folder.glob('*.jsonl'))}")
        return _File(file)


def _there(files: Iterable[str | Path]) -> str:
    tasks = sorted({Path(file).stem for file in files})
    return f"there is {', '.join(tasks)}" if tasks else f"there is no jsonl file; {FOLDER}"


@dataclass(frozen=True)
class _File:
    path: Path

    def rows(self) -> Iterator[Row]:
        return read_jsonl(self.path)

    def fingerprint(self) -> str:
        return fingerprint(self.path)


@dataclass(frozen=True)
class _Zipped:
    archive: Path
    member: str

    def rows(self) -> Iterator[Row]:
        return read_zipped_jsonl(self.archive, self.member)

    def fingerprint(self) -> str:
        return zipped_fingerprint(self.archive, self.member)
