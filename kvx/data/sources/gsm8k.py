"""GSM8K test problems, each behind worked examples, so that there is a cache to compress."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from kvx.data.example import Example
from kvx.data.files import fingerprint, read_jsonl
from kvx.data.ranges import check_range
from kvx.data.texts import required, stories_file
from kvx.data.values import missing, text
from kvx.errors import UserError

VERSION = "1"
N_RESERVED = 100  # the last problems serve as worked examples and are never asked


@dataclass
class Gsm8kSource:
    """jsonl(.gz) rows with `doc` {question, answer, short_answer}.

    Each context has `min_shots`..`max_shots` worked examples.
    """

    path: str
    min_shots: int = 2
    max_shots: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("min_shots", self.min_shots, "max_shots", self.max_shots, 0)
        check_range("max_shots", self.max_shots, "the worked examples", N_RESERVED, 0)

    def revision(self) -> str:
        return f"gsm8k-{VERSION}-{fingerprint(stories_file(self.path))[:12]}"

    def examples(self) -> Iterator[Example]:
        file = stories_file(self.path)
        docs = [
            row.get("doc", row)
            | required(row.get("doc", row), ("question", "answer"), f"{file}: row {number}")
            for number, row in enumerate(read_jsonl(file), 1)
        ]
        if len(docs) <= N_RESERVED:
            raise UserError(
                f"{file}: holds {len(docs)} problems; the last {N_RESERVED} are worked examples"
            )
        asked, reserved = docs[:-N_RESERVED], docs[-N_RESERVED:]
        for index, doc in enumerate(asked):
            rng = random.Random(f"{self.seed}-{index}")
            shots = rng.sample(reserved, rng.randint(self.min_shots, self.max_shots))
            worked = [f"Question: {s['question']}\nAnswer: {s['answer']}" for s in shots]
            short = doc.get("short_answer")
            answer = doc["answer"].split("####")[-1].strip() if missing(short) else short
            yield Example(
                example_id=f"gsm8k-{index:05d}",
                context="\n\n".join(worked),
                question=doc["question"],
                answers=(text(answer, f"{file}: row {index + 1}: 'short_answer'"),),
                meta={"n_shots": len(shots)},
            )
