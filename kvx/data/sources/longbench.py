"""LongBench, from a directory of its jsonl files or from the hub.

Source: https://arxiv.org/abs/2308.14508.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvx.data.example import Example
from kvx.data.files import existing, read_jsonl
from kvx.errors import UserError
from kvx.hashing import sha256_file, sha256_text

VERSION = "1"


@dataclass
class LongBenchSource:
    """Rows {input, context, answers, _id, ..} of task `task`.

    They come from `<path>/<task>.jsonl`, else from the hub dataset `hub`.
    """

    task: str
    path: str | None = None
    hub: str = "Xnhyacinth/LongBench"
    hub_revision: str | None = None

    def _file(self) -> Path:
        folder = existing(
            self.path or "", "set dataset.source.path to a directory of LongBench's jsonl files"
        )
        return existing(folder / f"{self.task}.jsonl", "dataset.source.path needs this file")

    def revision(self) -> str:
        if self.path:
            return f"longbench-{VERSION}-{sha256_file(self._file())[:12]}"
        return f"longbench-{VERSION}-{self.hub}@{self.hub_revision or 'main'}"

    def examples(self) -> Iterator[Example]:
        for index, row in enumerate(self._rows()):
            question = row.get("input") or row.get("question")
            answers = [a for a in row.get("answers") or [] if a.strip()]
            if not question or not row.get("context") or not answers:
                raise UserError(
                    f"LongBench {self.task}, row {index + 1}: needs input, context and answers, "
                    f"has {', '.join(sorted(row))}"
                )
            yield Example(
                example_id=f"{self.task}-{row.get('_id') or format(index, '05d')}",
                context=row["context"],
                question=question,
                answers=tuple(answers),
                cluster=sha256_text(row["context"])[:12],
                meta={"words": row.get("length") or 0},
            )

    def _rows(self) -> Iterator[dict[str, Any]]:
        if self.path:
            yield from read_jsonl(self._file())
            return
        import datasets

        try:
            yield from datasets.load_dataset(
                self.hub, self.task, split="test", revision=self.hub_revision
            )
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"dataset.source.hub={self.hub}: could not load ({first}); without a hub, set "
                "dataset.source.path to a directory of LongBench's jsonl files"
            ) from None
