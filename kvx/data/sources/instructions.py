"""Checkable instructions before, inside or after a text: does the model still do what it was told?

The texts are State of the Union speeches and NarrativeQA summaries, so that nothing comes from a
hub. An instruction before or inside the text stands in what a press compresses; one after it stands
with the question, which is not compressed unless `prompt.query_aware` says so.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from typing import Any

from kvx.data.example import Example
from kvx.data.files import read_jsonl
from kvx.data.texts import excerpt, speech_files, stories_file
from kvx.errors import UserError
from kvx.guard.instructions import Instruction
from kvx.guard.names import names_and_numbers
from kvx.hashing import digest, sha256_file

VERSION = "1"
PLACEMENTS = ("before", "inside", "after")
DEPTHS = (0.2, 0.8)  # where inside a text an instruction may stand, as a share of its sentences

SUMMARISE, SHORT, LIST = (
    "Summarize {what} in a few sentences.", "Summarize {what}.",
    "List important points of {what}.",
)  # fmt: skip
WORDS = ("Honestly", "Overall", "Briefly", "Today", "Listen", "Indeed", "Clearly", "Friends")
PHRASES = ("That is all.", "Thank you for reading.", "This is the end.", "I hope this helps.")
KEYWORDS = ("banana", "window", "purple", "garden", "guitar", "mountain", "coffee", "elephant")
# kind: the task about the text, the instruction, and the values it is drawn with
KINDS: dict[str, tuple[str, str, tuple[Any, ...]]] = {
    "begin_word": (SUMMARISE, 'Begin your answer with the word "{}".', WORDS),
    "end_phrase": (SUMMARISE, 'End your answer with the exact phrase "{}"', PHRASES),
    "keyword": (SUMMARISE, 'Use the word "{}" somewhere in your answer.', KEYWORDS),
    "no_word": (SUMMARISE, 'Do not use the word "{}" in your answer.', ("the", "and", "is", "of")),
    "number": (SUMMARISE, "Write the number {} somewhere in your answer.", (42, 73, 119, 250, 861)),
    "bullets": (LIST, 'Answer with exactly {} lines, each beginning with "* ".', (2, 3, 4, 5)),
    "numbered": (LIST, "Answer with a numbered list of exactly {} items.", (2, 3, 4, 5)),
    "sentences": (SHORT, "Answer with exactly {} sentences.", (1, 2, 3)),
    "paragraphs": (SHORT, "Answer with exactly {} paragraphs, with a blank line between them.",
                   (2, 3)),
    "max_words": (SHORT, "Answer with at most {} words.", (20, 40, 60)),
    "capitals": (SUMMARISE, "Write your whole answer in capital letters.", (None,)),
    "lowercase": (SUMMARISE, "Write your whole answer in lowercase letters only.", (None,)),
    "json": (SHORT, 'Answer with a JSON object that has the keys "topic" and "summary".', (None,)),
    "no_comma": (SUMMARISE, "Do not use any commas in your answer.", (None,)),
    "quotes": (SUMMARISE, "Put your whole answer in double quotation marks.", (None,)),
    "title": (SUMMARISE, "Begin with a title in double angle brackets, such as <<A title>>.",
              (None,)),
    "question_mark": (SUMMARISE, "End your answer with a question to the reader.", (None,)),
    "postscript": (SUMMARISE, 'End your answer with a postscript that begins with "P.S."', (None,)),
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """What a context is cut from (`anywhere`, or at the start), and how a question calls it."""

    body: str
    what: str
    anywhere: bool


@dataclass
class InstructionsSource:
    """`n_examples` instructions on texts of `min_words`..`max_words` words (log-uniform).

    `kinds` says how often each kind comes among the others; every placement comes as often as the
    next. `texts` names `speeches` (in `haystack`), `stories` (in `path`), or both.
    """

    haystack: str
    path: str
    texts: list[str] = field(default_factory=lambda: ["speeches", "stories"])
    kinds: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 1))
    placements: list[str] = field(default_factory=lambda: list(PLACEMENTS))
    n_examples: int = 360
    min_words: int = 150
    max_words: int = 1200
    seed: int = 0

    def __post_init__(self) -> None:
        _check_names("texts", self.texts, ("speeches", "stories"))
        _check_names("placements", self.placements, PLACEMENTS)
        _check_names("kinds", list(self.kinds), tuple(KINDS))
        if any(n < 0 for n in self.kinds.values()) or not sum(self.kinds.values()):
            raise UserError("dataset.source.kinds: shares must be 0 or more, and one above 0")
        if not 0 < self.min_words <= self.max_words:
            raise UserError(
                f"dataset.source.min_words={self.min_words}: must be at least 1 and at most "
                f"max_words={self.max_words}"
            )

    def revision(self) -> str:
        files = []
        if "speeches" in self.texts:
            files += speech_files(self.haystack)
        if "stories" in self.texts:
            files.append(stories_file(self.path))
        return f"instructions-{VERSION}-{digest([sha256_file(f) for f in files], 12)}"

    def examples(self) -> Iterator[Example]:
        order = [
            (kind, placement)
            for kind, n in self.kinds.items()
            for placement in self.placements
            for _ in range(n)
        ]
        random.Random(self.seed).shuffle(order)
        span = math.log(self.max_words / self.min_words)
        pools = [getattr(self, f"_{name}") for name in self.texts]
        for index, (kind, placement) in zip(range(self.n_examples), cycle(order), strict=False):
            rng = random.Random(f"{self.seed}-{index}")
            text = rng.choice(rng.choice(pools))
            length = round(self.min_words * math.exp(rng.random() * span))
            yield _example(f"instructions-{self.seed}-{index:05d}", text, length, kind, placement,
                           rng)  # fmt: skip

    @cached_property
    def _speeches(self) -> list[Text]:
        found = []
        for file in speech_files(self.haystack):
            body = file.read_text(encoding="utf-8")
            year, name, *rest = [*file.stem.split("-"), ""]
            named = year.isdigit() and name and rest
            name = name.replace("VanBuren", "Van Buren")
            what = f"the speech that President {name} gave in {year}" if named else "the speech"
            if len(body.split()) >= self.max_words:
                found.append(Text(body, what, anywhere=True))
        if not found:
            raise UserError(
                f"dataset.source.max_words={self.max_words}: no text in {self.haystack} is that "
                "long"
            )
        return found

    @cached_property
    def _stories(self) -> list[Text]:
        stories = sorted({row["passage"].strip() for row in read_jsonl(stories_file(self.path))})
        if not stories:
            raise UserError(f"{self.path}: dataset.source.path holds no story")
        texts = []
        for first, story in enumerate(stories):
            names = Counter(n for n in names_and_numbers(story, False) if n.isalpha())
            two = [name.title() for name, _ in names.most_common(2)]
            what = f"the story that mentions {' and '.join(two)}" if len(two) == 2 else "the story"
            body, others = story, iter(stories[first + 1 :] + stories[:first])
            while len(body.split()) < self.max_words and (more := next(others, None)) is not None:
                body += f"\n\n{more}"
            texts.append(Text(body, what, anywhere=False))
        return texts


def _check_names(name: str, given: list[str], known: tuple[str, ...]) -> None:
    unknown = [g for g in given if g not in known]
    if unknown or not given:
        raise UserError(
            f"dataset.source.{name}: {', '.join(map(str, unknown)) or 'empty'}; choose from "
            f"{', '.join(known)}"
        )


def _example(
    example_id: str, text: Text, n_words: int, kind: str, placement: str, rng: random.Random
) -> Example:
    task, wording, values = KINDS[kind]
    instruction = Instruction(kind, rng.choice(values))
    asked = wording.format(instruction.value)
    task = task.format(what=text.what)
    note = f"Instruction for your answer: {asked}"
    sentences = excerpt(text.body, n_words, rng if text.anywhere else None)
    depth = {"before": 0.0, "after": 1.0}.get(placement, rng.uniform(*DEPTHS))
    at = round(depth * len(sentences))
    parts = [" ".join(sentences[:at]), " ".join(sentences[at:])]
    if placement == "after":
        question = f"{task} {asked}"
    else:
        parts.insert(1, note)
        question = f"{task} Follow the instruction for your answer that came with the text."
    return Example(
        example_id=example_id,
        context="\n\n".join(part for part in parts if part),
        question=question,
        answers=(instruction.dumps(),),
        meta={"kind": kind, "placement": placement, "depth": round(depth, 4)},
    )
