"""Questions on NarrativeQA story summaries, with distractor summaries to fill the context.

This is not LongBench's NarrativeQA (whole books); it is called "NarrativeQA summaries" throughout.
"""

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass

from kvx.data.example import Example
from kvx.data.files import read_jsonl
from kvx.data.texts import stories_file, story_name
from kvx.hashing import sha256_file

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

    def revision(self) -> str:
        file = stories_file(self.path)
        return f"narrativeqa-{VERSION}-{sha256_file(file)[:12]}"

    def examples(self) -> Iterator[Example]:
        file = stories_file(self.path)
        rows = list(read_jsonl(file))
        passages = sorted({row["passage"] for row in rows})
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
                answers=_answers(row["answer"]),
                cluster=story_name(row["passage"]),
                meta={"n_distractors": len(stories) - 1, "story": place + 1},
            )


def _answers(value: str | list[str]) -> tuple[str, ...]:
    """The references; the file holds each list as Python text."""
    return tuple(ast.literal_eval(value) if isinstance(value, str) else value)
