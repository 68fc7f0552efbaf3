"""Instructions that a program can check: pure functions (text, value) -> kept or not.

An instruction travels as JSON, `{"instruction": "bullets", "value": 3}`. The kinds follow IFEval
(https://arxiv.org/abs/2311.07911), with some that a small model can keep.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

Value = str | int | None


@dataclass(frozen=True)
class Instruction:
    """One checkable instruction; `value` is its word, phrase or number, None if it has none."""

    kind: str
    value: Value = None

    def dumps(self) -> str:
        return json.dumps({"instruction": self.kind, "value": self.value})

    def kept(self, text: str) -> bool:
        """Whether `text` does what was asked; a text without a letter or digit never does."""
        text = text.strip()
        return _WORD.search(text) is not None and CHECKS[self.kind](text, self.value)


def parse(answer: str) -> Instruction | None:
    """The instruction that `answer` holds; None for any other text, malformed JSON included."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != {"instruction", "value"}:
        return None
    kind = found["instruction"]
    value: Value = found["value"]
    known = isinstance(kind, str) and kind in CHECKS
    return Instruction(kind, value) if known and type(value) is _type_of(kind) else None


def kept_at_the_end(instruction: Instruction, text: str, cut: bool) -> bool | None:
    """As `Instruction.kept`, but None where the token cap (`cut`) took the part that decides."""
    kept, kind = instruction.kept(text), instruction.kind
    undecided = cut and kind in (MORE_UNDOES if kept else NEEDS_END)
    return None if undecided else kept


_WORD = re.compile(r"\w")
_QUOTES = "\"'“”‘’"
_MARKS = _QUOTES + "*_#` \n"
# every pattern reads a text in linear time: a degenerate generation is 10^5 spaces or marks
_BULLET = re.compile(r"^[ \t]*[*•+-][ \t]+\S", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*(\d+)[.)][ \t]+\S", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’')]*\s+")
_TITLE = re.compile(r"<<([^<>\n]*)>>")
_POSTSCRIPT = re.compile(r"^[^\w\n]*P\. ?S\.", re.MULTILINE)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)*", text)


def _has_word(text: str, word: Value) -> bool:
    return re.search(rf"(?<!\w){re.escape(str(word))}(?!\w)", text, re.IGNORECASE) is not None


def _ends(text: str, phrase: str) -> bool:
    def bare(end: str) -> str:
        return " ".join(end.lower().split()).rstrip(_MARKS + ".!")

    return bare(text).endswith(bare(phrase))


def _n_written(parts: Iterable[str]) -> int:
    """How many of `parts` hold a letter or digit."""
    return sum(_WORD.search(part) is not None for part in parts)


def _paragraphs(text: str, n: int) -> bool:
    blocks = groupby(text.splitlines(), key=lambda line: _WORD.search(line) is not None)
    return sum(written for written, _ in blocks) == n


def _json(text: str, _: None) -> bool:
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    try:
        found = json.loads(text, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and len(found) > 0


# kinds by the type of their value
_OF_WORDS: dict[str, Callable[[str, Any], bool]] = {
    "begin_word": lambda text, word: _words(text)[0].lower() == word.lower(),
    "end_phrase": _ends,
    "keyword": _has_word,
    "no_word": lambda text, word: not _has_word(text, word),
}
_OF_NUMBERS: dict[str, Callable[[str, Any], bool]] = {
    "number": _has_word,
    "bullets": lambda text, n: len(_BULLET.findall(text)) == n,
    "numbered": lambda text, n: _NUMBERED.findall(text) == [str(i) for i in range(1, n + 1)],
    "sentences": lambda text, n: _n_written(_SENTENCE_END.split(text)) == n,
    "paragraphs": _paragraphs,
    "max_words": lambda text, n: len(_words(text)) <= n,
}
_PLAIN: dict[str, Callable[[str, Any], bool]] = {
    "capitals": lambda text, _: text == text.upper() and text != text.lower(),
    "lowercase": lambda text, _: text == text.lower() and text != text.upper(),
    "json": _json,
    "no_comma": lambda text, _: "," not in text,
    "quotes": lambda text, _: len(text) > 2 and text[0] in '"“' and text[-1] in '"”',
    "title": lambda text, _: _n_written(_TITLE.findall(text.splitlines()[0])) > 0,
    "question_mark": lambda text, _: text.rstrip(_MARKS).endswith("?"),
    "postscript": lambda text, _: _POSTSCRIPT.search(text) is not None,
}
CHECKS = {**_OF_WORDS, **_OF_NUMBERS, **_PLAIN}
# kinds that the rest of a cut text could still have kept
NEEDS_END = frozenset(
    {
        "end_phrase", "keyword", "number", "bullets", "numbered", "sentences", "paragraphs",
        "json", "quotes", "question_mark", "postscript",
    }
)  # fmt: skip

# kinds that the rest of a cut text could still have broken: they count, or ask for an end
MORE_UNDOES = NEEDS_END - {"keyword", "number", "postscript"}


def _type_of(kind: str) -> type:
    return str if kind in _OF_WORDS else int if kind in _OF_NUMBERS else type(None)
