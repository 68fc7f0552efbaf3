"""Instructions whose keeping a program can check: pure functions (text, value) -> kept or not.

An instruction travels as JSON, `{"instruction": "bullets", "value": 3}`. The kinds follow IFEval
(https://arxiv.org/abs/2311.07911), with those that a small model can keep.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

Value = str | int | None


@dataclass(frozen=True)
class Instruction:
    """One checkable instruction; `value` is its word, phrase or number, None if it has none."""

    kind: str
    value: Value = None

    @property
    def needs_end(self) -> bool:
        """Whether a text cut at the token cap can break it without being at fault."""
        return self.kind in NEEDS_END

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
    if not isinstance(kind, str) or kind not in CHECKS or type(value) is not _type_of(kind):
        return None
    return Instruction(kind, value)


def kept_at_the_end(instruction: Instruction, text: str, cut: bool) -> bool | None:
    """As `Instruction.kept`, but None where the token cap (`cut`) took the part that decides."""
    kept = instruction.kept(text)
    undecided = cut and (instruction.kind in MORE_UNDOES or (not kept and instruction.needs_end))
    return None if undecided else kept


_WORD = re.compile(r"\w")
_QUOTES = "\"'“”‘’"
_MARKS = _QUOTES + "*_#` \n"
# every pattern reads a text in linear time: a degenerate generation is 10^5 spaces or marks
_BULLET = re.compile(r"^[ \t]*[*•+-][ \t]+\S", re.MULTILINE)
_NUMBERED = re.compile(r"^[ \t]*(\d+)[.)][ \t]+\S", re.MULTILINE)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"”’')]*\s+")
_TITLE = re.compile(r"<<([^<>\n]*)>>")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)*", text)


def _has_word(text: str, value: Value) -> bool:
    return re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", text, re.IGNORECASE) is not None


def _begins(text: str, value: Value) -> bool:
    return _words(text)[0].lower() == str(value).lower()


def _ends(text: str, value: Value) -> bool:
    def bare(end: str) -> str:
        return " ".join(end.lower().split()).rstrip(_MARKS + ".!")

    return bare(text).endswith(bare(str(value)))


def _bullets(text: str, value: Value) -> bool:
    return len(_BULLET.findall(text)) == value


def _numbered(text: str, value: Value) -> bool:
    assert isinstance(value, int)
    return _NUMBERED.findall(text) == [str(i) for i in range(1, value + 1)]


def _sentences(text: str, value: Value) -> bool:
    return sum(_WORD.search(s) is not None for s in _SENTENCE_END.split(text)) == value


def _paragraphs(text: str, value: Value) -> bool:
    blocks = groupby(text.splitlines(), key=lambda line: _WORD.search(line) is not None)
    return sum(written for written, _ in blocks) == value


def _at_most_words(text: str, value: Value) -> bool:
    assert isinstance(value, int)
    return len(_words(text)) <= value


def _json(text: str, value: Value) -> bool:
    if text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json")
    try:
        found = json.loads(text, parse_int=str)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and len(found) > 0


def _quoted(text: str, value: Value) -> bool:
    return len(text) > 2 and text[0] in '"“' and text[-1] in '"”'


def _title(text: str, value: Value) -> bool:
    return any(_WORD.search(title) for title in _TITLE.findall(text.splitlines()[0]))


def _postscript(text: str, value: Value) -> bool:
    return re.search(r"^[^\w\n]*P\. ?S\.", text, re.MULTILINE) is not None


# kinds by the type of their value
_OF_WORDS: dict[str, Callable[[str, Value], bool]] = {
    "begin_word": _begins,
    "end_phrase": _ends,
    "keyword": _has_word,
    "no_word": lambda text, value: not _has_word(text, value),
}
_OF_NUMBERS: dict[str, Callable[[str, Value], bool]] = {
    "number": _has_word,
    "bullets": _bullets,
    "numbered": _numbered,
    "sentences": _sentences,
    "paragraphs": _paragraphs,
    "max_words": _at_most_words,
}
_PLAIN: dict[str, Callable[[str, Value], bool]] = {
    "capitals": lambda text, value: text == text.upper() and text != text.lower(),
    "lowercase": lambda text, value: text == text.lower() and text != text.upper(),
    "json": _json,
    "no_comma": lambda text, value: "," not in text,
    "quotes": _quoted,
    "title": _title,
    "question_mark": lambda text, value: text.rstrip(_MARKS).endswith("?"),
    "postscript": _postscript,
}
CHECKS = {**_OF_WORDS, **_OF_NUMBERS, **_PLAIN}
# what a cut text may still have been about to do
NEEDS_END = frozenset(
    {
        "end_phrase", "keyword", "number", "bullets", "numbered", "sentences", "paragraphs",
        "json", "quotes", "question_mark", "postscript",
    }
)  # fmt: skip

# what the next words of a cut text would have undone: the count that it has, the end that it has
MORE_UNDOES = NEEDS_END - {"keyword", "number", "postscript"}


def _type_of(kind: str) -> type:
    return str if kind in _OF_WORDS else int if kind in _OF_NUMBERS else type(None)
