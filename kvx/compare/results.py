"""One side of a comparison, whoever measured it: scored examples and the settings behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kvx.errors import UserError
from kvx.identity.hashing import sha256_text

KEYS = ("id", "prompt", "asked")  # by what examples can be paired, best first
ABOUT = (*KEYS, "references", "cluster")  # columns of `Result.examples`


@dataclass(frozen=True)
class Result:
    """Examples with their scores; read from `path` by the reader of `kind`.

    `examples` has a row per example with the columns `ABOUT`, None where the format does not tell
    it: its id, hashes of its prompt, of its question with the references, and of the references
    alone, and its cluster. `scores` [examples, metrics] is nan where there is no answer; the first
    metric is the primary one. `place` are the properties by which results of one source differ
    (press, budget, task …), `settings` all that is known of how the answers were made. `behind`
    has, for some of `place`, what may differ between results that name them alike. `is_full` tells
    a full cache that no controller steered, where that is known.
    """

    path: Path
    kind: str
    label: str
    examples: pd.DataFrame
    scores: pd.DataFrame
    higher_is_better: Mapping[str, bool]
    place: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    behind: Mapping[str, Any] = field(default_factory=dict)
    is_full: bool = False
    notes: Sequence[str] = ()


def text_key(*parts: str) -> str:
    """A hash of texts without their white space, which formats treat differently."""
    return sha256_text("".join("".join(part.split()) for part in parts))[:16]


def references_key(references: Sequence[str]) -> str:
    """A hash of reference answers, in any order."""
    return text_key("\0".join(sorted(references)))


def asked_key(question: str, references: Sequence[str]) -> str:
    """A hash of a question and its reference answers, in any order."""
    return text_key(question, "\0", "\0".join(sorted(references)))


def checked(result: Result) -> Result:
    """`result`, if it can be compared.

    Raises `UserError` for no example, ids that occur twice, and scores that are not finite.
    """
    if result.examples.empty:
        raise UserError(f"{result.path}: holds no examples")
    ids = result.examples["id"].dropna()
    if ids.duplicated().any():
        twice = ids[ids.duplicated()].iloc[0]
        raise UserError(
            f"{result.path}: example {twice} is there {int((ids == twice).sum())} times; it cannot "
            "be told which of them to pair"
        )
    bad = result.scores.isin([float("inf"), float("-inf")])
    if bad.to_numpy().any():
        metric = bad.columns[bad.any()][0]
        raise UserError(f"{result.path}: a score of {metric} is infinite")
    return result
