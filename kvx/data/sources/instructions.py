"""Checkable instructions before, inside or after a text, to test whether the model follows them.

The texts are State of the Union speeches and NarrativeQA summaries, so nothing comes from a hub. A
press compresses an instruction before or inside the text. One after it belongs to the question,
which is not compressed unless `prompt.query_aware` is set.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from typing import Any

from kvx.data.example import Example
from kvx.data.files import fingerprint, read_jsonl, read_text
from kvx.data.ranges import check_least, check_range
from kvx.data.texts import (
    excerpt,
    log_uniform,
    required,
    speech_files,
    stories_file,
    story_name,
)
from kvx.errors import UserError
from kvx.identity.hashing import digest
from kvx.scoring.instructions import Instruction

VERSION = "2"
PLACEMENTS = ("before", "inside", "after")
DEPTHS = (0.2, 0.8)  # where inside a text an instruction may stand, as a share of its sentences

TASK = "What is the text about?"
REMINDER = "Follow the rule."
WORDS = ("Overall", "Honestly", "Briefly", "Indeed", "Clearly", "Today")
PHRASES = ("That is all.", "Thank you for reading.", "This is the end.", "I hope this helps.")
KEYWORDS = ("banana", "window", "purple", "garden", "guitar", "mountain", "coffee", "elephant")
ITEMS = ("a dog", "a cat", "a house", "a tree")
# kind: the rule and the values it is drawn with. Without an example a small model keeps few of them
KINDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "end_phrase": ('Your answer must end with the words "{}" Example: It is about a dog. {}',
                   PHRASES),
    "keyword": ("Your answer must contain the word {}. Example: It is about a dog, {}.", KEYWORDS),
    "number": ("Your answer must contain the number {}. Example: It is about {} dogs.",
               (42, 73, 119, 250, 861)),
    "numbered": ("Your answer must be a numbered list of exactly {} items. Example:\n{items}",
                 (2, 3, 4)),
    "bullets": ("Your answer must be a list of exactly {} lines. Example:\n{lines}", (2, 3, 4)),
    "title": ("Your answer must begin with a title in double angle brackets. "
              "Example: <<The dog>> It is about a dog.", (None,)),
    "json": ('Your answer must be a JSON object. Example: {{"topic": "a dog"}}', (None,)),
    "begin_word": ('Your answer must begin with the word "{}". Example: {}, it is about a dog.',
                   WORDS),
    "sentences": ("Your answer must be exactly one sentence. Example: It is about a dog.", (1,)),
    "max_words": ("Your answer must have at most {} words. Example: It is about a dog.", (15, 25)),
    "no_comma": ("Your answer must be one short sentence without commas. "
                 "Example: It is about a dog.", (None,)),
    "capitals": ("YOUR ANSWER MUST BE IN CAPITAL LETTERS. EXAMPLE: IT IS ABOUT A DOG.", (None,)),
    "lowercase": ("your answer must be in lowercase letters. example: it is about a dog.", (None,)),
    "quotes": ('Your answer must stand in double quotation marks. Example: "It is about a dog."',
               (None,)),
    "question_mark": ("Your answer must be a question. Example: Is it about a dog?", (None,)),
    "no_word": ('Your answer must not contain the word "{}". Example: It is about a dog.',
                ("the", "and", "of")),
    "paragraphs": ("Your answer must have exactly two paragraphs. "
                   "Example: It is about a dog.\n\nIt is old.", (2,)),
    "postscript": ("Your answer must end with a postscript. "
                   "Example: It is about a dog.\nP.S. I like dogs.", (None,)),
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """What a context is cut from: anywhere, or from its start. `name` is its examples' cluster."""

    name: str
    body: str
    anywhere: bool


@dataclass
class InstructionsSource:
    """`n_examples` instructions on texts of `min_words`..`max_words` words (log-uniform).

    `kinds` gives each kind's share; placements are equally frequent. `texts` names `speeches` (in
    `haystack`), `stories` (in `path`), or both.
    """

    haystack: str
    path: str
    texts: list[str] = field(default_factory=lambda: ["speeches", "stories"])
    kinds: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 1))
    placements: list[str] = field(default_factory=lambda: list(PLACEMENTS))
    n_examples: int = 414
    min_words: int = 80
    max_words: int = 800
    seed: int = 0

    def __post_init__(self) -> None:
        _check_names("texts", self.texts, ("speeches", "stories"))
        _check_names("placements", self.placements, PLACEMENTS)
        _check_names("kinds", list(self.kinds), tuple(KINDS))
        if any(n < 0 for n in self.kinds.values()) or not sum(self.kinds.values()):
            raise UserError("dataset.source.kinds: shares must be 0 or more, and one above 0")
        check_least("n_examples", self.n_examples)
        check_range("min_words", self.min_words, "max_words", self.max_words, 1)

    def revision(self) -> str:
        files = []
        if "speeches" in self.texts:
            files += speech_files(self.haystack)
        if "stories" in self.texts:
            files.append(stories_file(self.path))
        return f"instructions-{VERSION}-{digest([fingerprint(f) for f in files], 12)}"

    def examples(self) -> Iterator[Example]:
        order = [
            (kind, placement)
            for kind, n in self.kinds.items()
            for placement in self.placements
            for _ in range(n)
        ]
        random.Random(self.seed).shuffle(order)
        pools = [getattr(self, f"_{name}") for name in self.texts]
        for index, (kind, placement) in zip(range(self.n_examples), cycle(order), strict=False):
            rng = random.Random(f"{self.seed}-{index}")
            text = rng.choice(rng.choice(pools))
            length = log_uniform(self.min_words, self.max_words, rng)
            yield _example(
                f"instructions-{self.seed}-{index:05d}", text, length, kind, placement, rng
            )

    @cached_property
    def _speeches(self) -> list[Text]:
        found = []
        for file in speech_files(self.haystack):
            body = read_text(file)
            if len(body.split()) >= self.max_words:
                found.append(Text(file.stem, body, anywhere=True))
        if not found:
            raise UserError(
                f"dataset.source.max_words={self.max_words}: no text in {self.haystack} is that "
                "long"
            )
        return found

    @cached_property
    def _stories(self) -> list[Text]:
        file = stories_file(self.path)
        rows = enumerate(read_jsonl(file), 1)
        passages = sorted(
            {required(r, ["passage"], f"{file}: row {n}")["passage"] for n, r in rows}
        )
        stories = [passage.strip() for passage in passages]
        if not stories:
            raise UserError(f"{self.path}: dataset.source.path holds no story")
        texts = []
        for first, story in enumerate(stories):
            body, others = story, iter(stories[first + 1 :] + stories[:first])
            while len(body.split()) < self.max_words and (more := next(others, None)) is not None:
                body += f"\n\n{more}"
            texts.append(Text(story_name(passages[first]), body, anywhere=False))
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
    wording, values = KINDS[kind]
    instruction = Instruction(kind, rng.choice(values))
    rule = f"Rule: {_worded(wording, instruction.value)}"
    sentences = excerpt(text.body, n_words, rng if text.anywhere else None)
    depth = {"before": 0.0, "after": 1.0}.get(placement, rng.uniform(*DEPTHS))
    at = round(depth * len(sentences))
    parts = [" ".join(sentences[:at]), " ".join(sentences[at:])]
    if placement == "after":
        question = f"{TASK} {rule}"
    else:
        parts.insert(1, rule)
        question = f"{TASK} {REMINDER}"
    return Example(
        example_id=example_id,
        context="\n\n".join(part for part in parts if part),
        question=question,
        answers=(instruction.dumps(),),
        cluster=text.name,
        meta={"kind": kind, "placement": placement, "depth": round(depth, 4)},
    )


def _worded(wording: str, value: Any) -> str:
    items = ITEMS[:value] if isinstance(value, int) else ()
    numbered = "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))
    bullets = "\n".join(f"* {item}" for item in items)
    return wording.format(value, value, items=numbered, lines=bullets)
