"""Questions on NarrativeQA story summaries, with distractor summaries to fill the context.

This is not LongBench's NarrativeQA (whole books); it is called "NarrativeQA summaries" throughout.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvx.data.example import Example
from kvx.data.files import Row, fingerprint, read_jsonl
from kvx.data.ranges import check_least
from kvx.data.texts import required, stories_file, story_name
from kvx.data.values import texts
from kvx.errors import UserError

VERSION = "1"


@dataclass
class NarrativeQASource:
    """jsonl rows {question, answer, passage}.

    0..`max_distractors` other stories stand around the right one. With `per_story` all questions on
    a story come together, on one context; stories are taken until `n_examples` questions are there.
    """

    path: str
    n_examples: int = 400
    max_distractors: int = 4
    seed: int = 0
    per_story: bool = False

    def __post_init__(self) -> None:
        check_least("n_examples", self.n_examples)
        check_least("max_distractors", self.max_distractors, 0)

    @staticmethod
    def identity_of(fields: dict[str, Any]) -> dict[str, Any]:
        """The fields in a manifest's key; `per_story`, which came later, only if it is set."""
        return {k: v for k, v in fields.items() if k != "per_story" or v}

    def revision(self) -> str:
        return f"narrativeqa-{VERSION}-{fingerprint(stories_file(self.path))[:12]}"

    def examples(self) -> Iterator[Example]:
        file = stories_file(self.path)
        rows = [_texts(row, f"{file}: row {n}") for n, row in enumerate(read_jsonl(file), 1)]
        passages = sorted({row["passage"] for row in rows})
        if rows and self.max_distractors >= len(passages):
            raise UserError(
                f"dataset.source.max_distractors={self.max_distractors}: {file} holds "
                f"{len(passages)} stories, so at most {len(passages) - 1} can stand beside one"
            )
        if self.per_story:
            yield from self._by_story(rows, passages)
            return
        order = list(range(len(rows)))
        random.Random(self.seed).shuffle(order)
        for index in sorted(order[: self.n_examples]):
            yield self._example(index, rows[index], passages, random.Random(f"{self.seed}-{index}"))

    def _by_story(self, rows: list[dict[str, Any]], passages: list[str]) -> Iterator[Example]:
        asked: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            asked.setdefault(row["passage"], []).append(index)
        stories = list(asked)
        random.Random(self.seed).shuffle(stories)
        n_left = self.n_examples
        for story in stories:
            if n_left <= 0:
                return
            n_left -= len(asked[story])
            for index in asked[story]:  # the same draws, so that the context is the same
                rng = random.Random(f"{self.seed}-{story_name(story)}")
                yield self._example(index, rows[index], passages, rng)

    def _example(
        self, index: int, row: dict[str, Any], passages: list[str], rng: random.Random
    ) -> Example:
        others = [p for p in passages if p != row["passage"]]
        stories = rng.sample(others, rng.randint(0, self.max_distractors))
        place = rng.randint(0, len(stories))
        stories.insert(place, row["passage"])
        return Example(
            example_id=f"narrativeqa-{index:05d}",
            context="\n\n".join(f"Story {i}:\n{s.strip()}" for i, s in enumerate(stories, 1)),
            question=row["question"],
            answers=row["answer"],
            cluster=story_name(row["passage"]),
            meta={"n_distractors": len(stories) - 1, "story": place + 1},
        )


def _texts(row: Row, at: str) -> dict[str, Any]:
    """Question, passage and references (the file holds each list of them as Python text)."""
    answers = texts(row.get("answer"), f"{at}: 'answer'")
    if not answers:
        raise UserError(f"{at}: no answers in 'answer'; every example needs one")
    return {**required(row, ("question", "passage"), at), "answer": answers}
