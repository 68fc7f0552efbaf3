"""Multi-round needles in the form of OpenAI's MRCR (https://huggingface.co/datasets/openai/mrcr):
a conversation with equal requests, of whose answers one must be repeated.

Answers are excerpts of State of the Union speeches, where MRCR has texts by GPT-4o.
"""

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kvx.data.example import Example
from kvx.data.files import fingerprint, read_text
from kvx.data.ranges import check_least, check_range
from kvx.data.texts import excerpt, log_uniform, speech_files
from kvx.errors import UserError
from kvx.identity.hashing import digest

VERSION = "1"
FORMS = ("poem", "short essay", "news article", "blog post", "speech", "letter", "riddle", "scene")
TOPICS = (
    "rivers", "taxes", "winter", "railways", "honesty", "bees", "harvests", "the sea", "medicine",
    "markets", "bridges", "gardens", "clocks", "friendship", "mountains", "printing", "roads",
    "schools", "silver", "storms", "trade", "travel", "voting", "wool",
)  # fmt: skip
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th", "6th", "7th", "8th")
QUESTION = (
    "Prepend {key} to the {ordinal} (1 indexed) {what}. Do not include any other text in your "
    "response."
)
PREFIX_FIELD = "random_string_to_prepend"
PREFIX_CHARS = 10


@dataclass
class MrcrSource:
    """`n_contexts` conversations of `min_turns`..`max_turns` requests (log-uniform).

    `n_needles` of the requests are the same, and each of their answers is asked for by one
    question. Each answer has about `n_words` words. A conversation is a cluster.
    """

    haystack: str
    n_contexts: int = 60
    n_needles: int = 2
    min_turns: int = 4
    max_turns: int = 40
    n_words: int = 60
    seed: int = 0

    def __post_init__(self) -> None:
        check_least("n_contexts", self.n_contexts)
        check_range("n_needles", self.n_needles, "the ordinals", len(ORDINALS), 2)
        most = len(FORMS) * len(TOPICS) - 1 + self.n_needles
        check_range("min_turns", self.min_turns, "max_turns", self.max_turns, self.n_needles)
        if self.max_turns > most:
            raise UserError(
                f"dataset.source.max_turns={self.max_turns}: there are requests for {most} turns"
            )
        check_least("n_words", self.n_words)

    @cached_property
    def speeches(self) -> list[Path]:
        return speech_files(self.haystack)

    def revision(self) -> str:
        return f"mrcr-{VERSION}-{digest([fingerprint(f) for f in self.speeches], 12)}"

    def examples(self) -> Iterator[Example]:
        texts = [text for file in self.speeches if len((text := read_text(file)).split()) > 500]
        for index in range(self.n_contexts):
            rng = random.Random(f"{self.seed}-{index}")
            n_turns = log_uniform(self.min_turns, self.max_turns, rng)
            requests = [f"{form} about {topic}" for form in FORMS for topic in TOPICS]
            needle, *others = rng.sample(requests, n_turns - self.n_needles + 1)
            places = sorted(rng.sample(range(n_turns), self.n_needles))
            turns = [needle if i in places else others.pop() for i in range(n_turns)]
            answers = [" ".join(excerpt(rng.choice(texts), self.n_words, rng)) for _ in turns]
            context = "\n\n".join(
                f"User: Write a {what}\n\nAssistant: {answer}"
                for what, answer in zip(turns, answers, strict=True)
            )
            name = f"mrcr-{self.seed}-{index:04d}"
            for rank, place in enumerate(places):
                key = "".join(rng.choices(string.ascii_letters + string.digits, k=PREFIX_CHARS))
                yield Example(
                    example_id=f"{name}-{rank}",
                    context=context,
                    question=QUESTION.format(key=key, ordinal=ORDINALS[rank], what=needle),
                    answers=(key + answers[place],),
                    cluster=name,
                    meta={
                        PREFIX_FIELD: key,
                        "n_needles": self.n_needles,
                        "desired_msg_index": 2 * place + 1,
                        "total_messages": 2 * n_turns + 1,
                    },
                )
