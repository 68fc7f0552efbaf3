"""GSM8K test problems.

The context is worked examples and the problem, so that there is a cache to compress.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from kvx.data.example import Example
from kvx.data.files import existing, read_jsonl
from kvx.hashing import sha256_file

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

    def revision(self) -> str:
        file = existing(self.path, "run `make assets` (or kvx-assets), or set dataset.source.path")
        return f"gsm8k-{VERSION}-{sha256_file(file)[:12]}"

    def examples(self) -> Iterator[Example]:
        file = existing(self.path, "run `make assets` (or kvx-assets), or set dataset.source.path")
        docs = [row.get("doc", row) for row in read_jsonl(file)]
        asked, reserved = docs[:-N_RESERVED], docs[-N_RESERVED:]
        for index, doc in enumerate(asked):
            rng = random.Random(f"{self.seed}-{index}")
            shots = rng.sample(reserved, rng.randint(self.min_shots, self.max_shots))
            worked = [f"Question: {s['question']}\nAnswer: {s['answer']}" for s in shots]
            yield Example(
                example_id=f"gsm8k-{index:05d}",
                context="\n\n".join(worked),
                question=doc["question"],
                answers=(str(doc.get("short_answer") or doc["answer"].split("####")[-1].strip()),),
                meta={"n_shots": len(shots)},
            )
