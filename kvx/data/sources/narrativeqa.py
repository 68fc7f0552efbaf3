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

    0..`max_distractors` other stories stand around the right one.
    """

    path: str
    n_examples: int = 400
    max_distractors: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_least("n_examples", self.n_examples)
        check_least("max_distractors", self.max_distractors, 0)

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
        order = list(range(len(rows)))
        random.Random(self.seed).shuffle(order)
        for index in sorted(order[: self.n_examples]):
            row = rows[index]
            rng = random.Random(f"{self.seed}-{index}")
            others = [p for p in passages if p != row["passage"]]
            stories = rng.sample(others, rng.randint(0, self.max_distractors))
            place = rng.randint(0, len(stories))
            stories.insert(place, row["passage"])
            yield Example(
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
