"""Texts that contexts are made of: speeches and story summaries, and excerpts of them."""

import math
import random
import re
from collections.abc import Sequence
from pathlib import Path

from kvx.data.files import columns_of, existing, existing_file
from kvx.data.values import text as text_of
from kvx.errors import UserError
from kvx.identity.hashing import sha256_text

HINT = "run `make assets` (or kvx-assets), or set dataset.source.{}"


def speech_files(folder: str) -> list[Path]:
    """The .txt files of `dataset.source.haystack`, by name. Raises `UserError` if none exist."""
    files = sorted(existing(folder, HINT.format("haystack")).glob("*.txt"))
    if not files:
        raise UserError(f"{folder}: dataset.source.haystack holds no .txt file")
    return files


def stories_file(path: str) -> Path:
    """The jsonl file of `dataset.source.path`. Raises `UserError` if it is missing."""
    return existing_file(path, HINT.format("path"))


def required(row: object, names: Sequence[str], at: str) -> dict[str, str]:
    """The texts of these columns. Raises `UserError` if one is missing or not text."""
    columns = row if isinstance(row, dict) else {}
    if lacking := [name for name in names if name not in columns]:
        has = columns_of(columns) if columns else type(row).__name__
        raise UserError(f"{at}: no {lacking[0]}; it has {has}")
    return {name: text_of(columns[name], f"{at}: {name!r}") for name in names}


def log_uniform(low: int, high: int, rng: random.Random) -> int:
    return round(low * math.exp(rng.random() * math.log(high / low)))


def story_name(passage: str) -> str:
    """A story's name, the same in every dataset that asks about it."""
    return sha256_text(passage)[:12]


def sentences_of(text: str) -> list[str]:
    """The sentences of `text`, with single spaces."""
    return re.split(r"(?<=[.!?])\s+", " ".join(text.split()))


def excerpt(text: str, n_words: int, rng: random.Random | None) -> list[str]:
    """Consecutive sentences of about `n_words` words, from a random place of `text`.

    Without `rng`, from its start.
    """
    sentences = sentences_of(text)
    counts = [len(s.split()) for s in sentences]
    total = sum(counts)
    skip, start = rng.randrange(max(1, total - n_words)) if rng else 0, 0
    while skip > 0 and start < len(sentences) - 1:
        skip -= counts[start]
        start += 1
    out: list[str] = []
    words = 0
    for sentence, count in zip(sentences[start:], counts[start:], strict=True):
        if words >= n_words:
            break
        out.append(sentence)
        words += count
    return out
