"""The embedded recall task for the tiny recall model: `key v1 .. vk .` facts hidden in filler."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kvx.config.folders import package_dir
from kvx.data.example import Example
from kvx.data.ranges import check_least, check_range
from kvx.data.texts import log_uniform
from kvx.errors import UserError
from kvx.identity.hashing import sha256_file

VERSION = "1"


def words_file() -> Path:
    return package_dir() / "assets" / "tiny_recall" / "words.json"


@dataclass
class RecallSource:
    """`n_examples` generated, seeded contexts of `min_words`..`max_words` words (log-uniform)."""

    n_examples: int = 400
    min_words: int = 200
    max_words: int = 2000
    n_facts: int = 16
    min_values: int = 2
    max_values: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_least("n_examples", self.n_examples)
        check_least("n_facts", self.n_facts)
        check_range("min_words", self.min_words, "max_words", self.max_words, 1)
        check_range("min_values", self.min_values, "max_values", self.max_values, 1)
        room = self.min_words // (self.max_values + 2)
        if self.n_facts > room:
            raise UserError(
                f"dataset.source.n_facts={self.n_facts}: a context of min_words={self.min_words} "
                f"words has room for {room} facts of up to max_values={self.max_values} words"
            )

    def revision(self) -> str:
        return f"recall-{VERSION}-{sha256_file(words_file())[:12]}"

    def examples(self) -> Iterator[Example]:
        words = json.loads(words_file().read_text())
        for index in range(self.n_examples):
            rng = random.Random(f"{self.seed}-{index}")
            length = log_uniform(self.min_words, self.max_words, rng)
            yield self._example(index, length, words, rng)

    def _example(
        self, index: int, length: int, words: dict[str, list[str]], rng: random.Random
    ) -> Example:
        slot = self.max_values + 2
        body = [rng.choice(words["filler"]) if rng.random() > 0.1 else "." for _ in range(length)]
        keys = rng.sample(words["keys"], self.n_facts)
        values = rng.sample(words["values"], self.n_facts * self.max_values)
        starts = rng.sample(range(length // slot), self.n_facts)
        facts = []
        for key, start in zip(keys, starts, strict=True):
            answer = [values.pop() for _ in range(rng.randint(self.min_values, self.max_values))]
            fact = [key, *answer, "."]
            body[start * slot : start * slot + len(fact)] = fact
            facts.append((key, " ".join(answer), start * slot / length))
        key, answer_text, depth = facts[rng.randrange(self.n_facts)]
        return Example(
            example_id=f"recall-{index:05d}",
            context=" ".join(body),
            question=key,
            answers=(answer_text,),
            meta={"depth": round(depth, 4)},
        )
