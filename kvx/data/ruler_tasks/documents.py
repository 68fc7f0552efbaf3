"""Questions on documents among others: RULER's qa_1 (SQuAD) and qa_2 (HotpotQA)."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from kvx.data.files import existing, read_text
from kvx.data.ruler_tasks.drafts import Count, Draft
from kvx.errors import UserError
from kvx.identity.hashing import sha256_text

SQUAD, HOTPOTQA = "squad", "hotpotqa"
# as RULER saves them, and as they are published
FILES = {
    SQUAD: ("squad.json", "dev-v2.0.json"),
    HOTPOTQA: ("hotpotqa.json", "hotpot_dev_distractor_v1.json"),
}
CHARS_PER_TOKEN = 4.5  # at first; `kvx.data.ruler_tasks.to_length` measures it


@dataclass(frozen=True)
class Question:
    """`own` documents hold the answer, or come with the question; `near` are of the same article.

    Both are positions in the list of all documents.
    """

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    near: tuple[int, ...] = ()


def file_of(kind: str, path: str | None, task: str) -> Path:
    """The data file in `dataset.source.path`, or that file itself.

    Raises `UserError` if it is not there.
    """
    names = " or ".join(FILES[kind])
    if path is None:
        raise UserError(
            f"dataset.task={task}: asks about {kind}'s documents, which are not generated; set "
            f"dataset.source.path to a folder with {names}, or take dataset=ruler_generated, which "
            "has the other 11 tasks"
        )
    found = existing(path, f"set dataset.source.path to a folder with {names}")
    if not found.is_dir():
        return found
    for name in FILES[kind]:
        if (found / name).is_file():
            return found / name
    raise UserError(f"{found}: dataset.task={task} needs {names} in dataset.source.path")


@dataclass(frozen=True)
class Documents:
    kind: str
    file: Path

    def draft(self, index: int, rng: random.Random, count: Count) -> Draft:
        documents, questions = self._read
        if index >= len(questions):
            raise UserError(
                f"dataset.source.n_examples: {self.file} holds only {len(questions)} questions"
            )
        asked = questions[index]
        near = rng.sample(asked.near, len(asked.near))
        beside = {*asked.own, *asked.near}
        others = [i for i in rng.sample(range(len(documents)), len(documents)) if i not in beside]
        ranked = [documents[i] for i in (*asked.own, *near, *others)]
        before = [0, *accumulate(len(text) + 16 for text in ranked)]
        order = rng.random()

        def arranged(n: int) -> list[int]:
            return random.Random(order).sample(range(n), n)

        def build(n: int) -> str:
            listed = (ranked[i] for i in arranged(n))
            return "\n\n".join(f"Document {i}:\n{text}" for i, text in enumerate(listed, 1))

        return Draft(
            asked.text, asked.answers, build, lambda n: before[n] / CHARS_PER_TOKEN,
            least=len(asked.own), most=len(ranked),
            cluster=sha256_text(documents[asked.own[0]])[:12] if self.kind == SQUAD else "",
        )  # fmt: skip

    @cached_property
    def _read(self) -> tuple[list[str], list[Question]]:
        """All documents, sorted, and the questions in the file's order."""
        try:
            data = json.loads(read_text(self.file))
            rows = list(_squad(data) if self.kind == SQUAD else _hotpotqa(data))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.file}: not {self.kind}'s file ({type(error).__name__}: {error}); see "
                "docs/data.md"
            ) from None
        documents = sorted({text for row in rows for text in (*row[2], *row[3])})
        at = {text: i for i, text in enumerate(documents)}
        questions = [
            Question(text, tuple(answers), tuple(at[t] for t in own), tuple(at[t] for t in near))
            for text, answers, own, near in rows
        ]
        return documents, questions


Row = tuple[str, Sequence[str], Sequence[str], Sequence[str]]


def _squad(data: Any) -> Iterator[Row]:
    for article in data["data"]:
        texts = [paragraph["context"] for paragraph in article["paragraphs"]]
        for paragraph in article["paragraphs"]:
            own = paragraph["context"]
            near = list(dict.fromkeys(text for text in texts if text != own))
            for asked in paragraph["qas"]:
                if not asked.get("is_impossible", False):
                    answers = [answer["text"] for answer in asked["answers"]]
                    yield asked["question"], answers, [own], near


def _hotpotqa(data: Any) -> Iterator[Row]:
    for row in data:
        own = [f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]]
        yield row["question"], [row["answer"]], list(dict.fromkeys(own)), []
