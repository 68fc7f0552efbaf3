"""LongBench (https://arxiv.org/abs/2308.14508), from a directory of its jsonl files or the hub."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from kvx.data import row_examples
from kvx.data.example import Example
from kvx.data.files import existing, existing_file, fingerprint, read_jsonl
from kvx.errors import UserError, first_line

VERSION = "1"
HUB = "Xnhyacinth/LongBench"
# the commit of `HUB` that kvpress's users measure with
HUB_REVISION = "2e9ade51ebf45d98942056c0716234f9d5d257d5"
FIELDS = {"id": "_id", "question": "input"}


@dataclass
class LongBenchSource:
    """Rows {input, context, answers, _id, ..} of task `task`.

    They come from `<path>/<task>.jsonl`, else from the hub dataset `hub` at commit `hub_revision`.
    The hub's rows are in kvpress's form (context, question, answer_prefix, answers,
    max_new_tokens): they contain LongBench's prompt, so the dataset's template is not used. Without
    `row_limits`, `decoding.max_new_tokens` holds for all rows.
    """

    task: str
    path: str | None = None
    hub: str = HUB
    hub_revision: str | None = HUB_REVISION
    row_limits: bool = True

    @staticmethod
    def identity_of(fields: dict[str, Any]) -> dict[str, Any]:
        """The fields that decide the examples; `revision` names the commit."""
        told = {k: v for k, v in fields.items() if k != "row_limits" or not v}
        return {**told, "hub_revision": None}

    def _file(self) -> Path:
        folder = existing(
            self.path or "", "set dataset.source.path to a directory of LongBench's jsonl files"
        )
        return existing_file(folder / f"{self.task}.jsonl", "dataset.source.path needs this file")

    def revision(self) -> str:
        if self.path:
            file = self._file()
            asked = ({"input": row.get("question"), **row} for row in read_jsonl(file))
            version = VERSION if row_examples.were_plain(asked, FIELDS) else row_examples.VERSION
            return f"longbench-{version}-{fingerprint(file)[:12]}"
        return f"longbench-{row_examples.VERSION}-{self.hub}@{self._commit()}"

    def examples(self) -> Iterator[Example]:
        found = iter(self._rows())
        first = next(found, None)
        if first is None:
            return iter(())
        kvpress = "input" not in first and {"question", "answer_prefix"} <= set(first)
        layout = "kvpress" if kvpress else "longbench"
        fields = {} if self.row_limits else {"max_new_tokens": None}
        reading = row_examples.Reading(layout, fields, f"{self.task}-", "{:05d}", from_row=0)
        return row_examples.examples(chain([first], found), f"LongBench {self.task}", reading)

    def _commit(self) -> str:
        """Raises `UserError` for a revision that could name other data tomorrow."""
        if re.fullmatch(r"[0-9a-f]{40}", self.hub_revision or "") is None:
            raise UserError(
                f"dataset.source.hub_revision={self.hub_revision}: name a commit of {self.hub} (40 "
                "hex digits); a branch could change under finished runs"
            )
        return str(self.hub_revision)

    def _rows(self) -> Iterator[dict[str, Any]]:
        if self.path:
            yield from read_jsonl(self._file())
            return
        import datasets

        try:
            yield from datasets.load_dataset(
                self.hub, self.task, split="test", revision=self._commit()
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"dataset.source.hub={self.hub}: could not load ({first_line(error)}); without "
                "a hub, set dataset.source.path to a directory of LongBench's jsonl files"
            ) from None
