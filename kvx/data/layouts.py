"""How benchmarks lay out their rows: which column is what, and what has to be put together.

SQuAD (https://arxiv.org/abs/1606.05250), HotpotQA (https://arxiv.org/abs/1809.09600), LongBench
(https://arxiv.org/abs/2308.14508), RULER (https://arxiv.org/abs/2404.06654), HELMET
(https://arxiv.org/abs/2410.02694), InfiniteBench (https://arxiv.org/abs/2402.13718), SCBench
(https://arxiv.org/abs/2412.10319), MRCR (https://huggingface.co/datasets/openai/mrcr).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kvx.data.files import Row, columns_of
from kvx.data.values import from_json, literal, text
from kvx.errors import UserError

ROLES = ("id", "context", "question", "answers", "cluster", "answer_prefix", "max_new_tokens")
NEEDED = ("context", "question", "answers")
OPTIONS = "ABCDEFGH"

# where RULER's questions begin, by its own templates (scripts/data/synthetic/constants.py)
_RULER_QUESTION = re.compile(
    r"What (?:is|are all) the special magic|Question: Find all variables that are assigned|"
    r"Question: What are the 10 most common words|Question: Do not provide any explanation\.|"
    r"Answer the question based on the given documents\."
)
_RULER_LAST = re.compile(r"\b(?:Question:|What|Which|Who|Whose|Where|When|Why|How)\b")


@dataclass(frozen=True)
class Layout:
    """`columns`: where each role may stand; the first column that exists counts.

    `rows` makes rows of questions out of a row of the file (`many`: several of one). With
    `wants_question` a row without a question is refused. `formatted` rows hold the benchmark's own
    wording: no template is put around them. Columns of `kept` go into `Example.meta`, for metrics.
    """

    columns: Mapping[str, tuple[str, ...]]
    rows: Callable[[Row, str], Iterator[Row]]
    wants_question: bool = True
    formatted: bool = False
    many: bool = False
    kept: tuple[str, ...] = ()

    def column(self, role: str, row: Row) -> str:
        """The column of `row` that holds `role`, or the one that should."""
        names = self.columns[role]
        return next((name for name in names if name in row), names[0])


def _itself(row: Row, at: str) -> Iterator[Row]:
    yield row


def _squad(row: Row, at: str) -> Iterator[Row]:
    """An article with paragraphs, a paragraph with questions, or a question."""
    if "paragraphs" in row:
        for paragraph in _objects(row["paragraphs"], f"{at}: 'paragraphs'"):
            yield from _squad(paragraph, at)
    elif "qas" in row:
        for question in _objects(row["qas"], f"{at}: 'qas'"):
            impossible = question.get("is_impossible") is True
            answers = {"text": []} if impossible else question.get("answers")
            yield {**question, "context": row.get("context"), "answers": answers}
    else:
        yield row


def _ruler(row: Row, at: str) -> Iterator[Row]:
    """RULER's `input` is the whole prompt; the question is its end."""
    context, question = split_question(text(row.get("input"), f"{at}: 'input'"))
    yield {**row, "input": context, "question": question}


def _plain(row: Row, at: str) -> Iterator[Row]:
    """Columns as they are; LongBench v2's `choice_A` .. join the question."""
    options = [row[f"choice_{letter}"] for letter in OPTIONS if f"choice_{letter}" in row]
    yield _with_options(row, options, "question", at) if options and "answer" in row else row


def _infinitebench(row: Row, at: str) -> Iterator[Row]:
    options = row.get("options")
    has_some = isinstance(options, list) and options
    yield _with_options(row, options, "input", at) if has_some else row


def _scbench(row: Row, at: str) -> Iterator[Row]:
    """SCBench's `multi_turns` are questions on one context; an answer may be among options."""
    name = row.get("id")
    for number, turn in enumerate(_objects(row.get("multi_turns"), f"{at}: 'multi_turns'")):
        own = {k: turn.get(k) for k in ("input", "answer", "options")}
        found = {**own, "context": row.get("context", row.get("input"))}
        if name is not None:
            found["id"] = f"{text(name, at)}-{number}"
        yield from _infinitebench(found, at)


def _mrcr(row: Row, at: str) -> Iterator[Row]:
    """MRCR's `prompt` is a list of messages, in JSON; the last one asks."""
    prompt = row.get("prompt")
    messages = _objects(from_json(prompt) if isinstance(prompt, str) else prompt, f"{at}: 'prompt'")
    if len(messages) < 2 or not all({"role", "content"} <= set(m) for m in messages):
        raise UserError(
            f"{at}: 'prompt': expected messages with role and content, the last a user's"
        )
    said = [text(message["content"], f"{at}: 'prompt'") for message in messages]
    roles = [text(message["role"], f"{at}: 'prompt'").capitalize() for message in messages]
    lines = [f"{role}: {content}" for role, content in zip(roles, said, strict=True)]
    yield {**row, "context": "\n\n".join(lines[:-1]), "question": said[-1]}


def _with_options(row: Row, options: Any, question: str, at: str) -> Row:
    """Multiple choice: options join the question; an answer is an option's text or its letter."""
    names = [text(option, f"{at}: 'options'") for option in options]
    lines = [f"{letter}. {name}" for letter, name in zip(OPTIONS, names, strict=False)]
    given = row["answer"] if isinstance(row.get("answer"), list) else [row.get("answer")]
    both = dict(zip(OPTIONS, names, strict=False))
    more = [b for a, b in both.items() if a in given] + [a for a, b in both.items() if b in given]
    asked = "\n".join([text(row.get(question), f"{at}: {question!r}"), *lines])
    return {**row, question: asked, "answer": [*given, *(m for m in more if m not in given)]}


_PLAIN = {name: (name,) for name in ROLES}
_ID = ("id", "_id", "qid")

LAYOUTS: dict[str, Layout] = {
    "plain": Layout({**_PLAIN, "answers": ("answers", "answer")}, _plain),
    "squad": Layout(_PLAIN, _squad, many=True),
    "hotpotqa": Layout({**_PLAIN, "id": _ID, "answers": ("answer", "answers")}, _itself),
    "longbench": Layout(
        {**_PLAIN, "id": ("_id", "id"), "question": ("input", "question"),
         "answers": ("answers", "answer")},
        _itself, wants_question=False,
    ),
    "ruler": Layout(
        {**_PLAIN, "id": ("index", "id"), "context": ("input",), "answers": ("outputs",)},
        _ruler, wants_question=False, formatted=True,
    ),
    "helmet": Layout(
        {**_PLAIN, "id": _ID, "context": ("ctxs", "context"), "question": ("question", "query"),
         "answers": ("answers", "answer")},
        _itself,
    ),
    "infinitebench": Layout(
        {**_PLAIN, "question": ("input",), "answers": ("answer",)},
        _infinitebench, wants_question=False,
    ),
    "scbench": Layout(
        {**_PLAIN, "question": ("input",), "answers": ("answer",)}, _scbench, many=True
    ),
    "mrcr": Layout(
        {**_PLAIN, "answers": ("answer",)}, _mrcr, kept=("random_string_to_prepend",)
    ),
    # kvpress's evaluation: the benchmark's wording is in context and question
    "kvpress": Layout(
        {**_PLAIN, "answers": ("answers", "answer")}, _itself, wants_question=False, formatted=True
    ),
}  # fmt: skip
AUTO = "auto"
NAMES = (AUTO, *LAYOUTS)


def detected(row: Row) -> str:
    """The layout that a row's columns suggest; `plain` if they suggest no benchmark's."""
    has = set(row)
    if ("paragraphs" in has or "qas" in has) and "question" not in has:
        return "squad"
    if "multi_turns" in has:
        return "scbench"
    if {"prompt", "random_string_to_prepend"} <= has:
        return "mrcr"
    if {"input", "outputs"} <= has:
        return "ruler"
    if "ctxs" in has and "context" not in has:
        return "helmet"
    if "question" not in has and {"input", "context"} <= has:
        return "longbench" if "answers" in has else "infinitebench" if "answer" in has else "plain"
    return "plain"


def split_question(prompt: str) -> tuple[str, str]:
    """Split a prompt that ends in its question; the question is empty if none is found.

    RULER's own questions are found by how they begin, others by the last question word before a
    question mark.
    """
    found = list(_RULER_QUESTION.finditer(prompt))
    if found:
        return prompt[: found[-1].start()], prompt[found[-1].start() :]
    mark = prompt.rfind("?")
    if mark >= 0:
        words = list(_RULER_LAST.finditer(prompt, max(0, mark - 2000), mark))
        if words:
            return prompt[: words[-1].start()], prompt[words[-1].start() :]
    return prompt, ""


def context_of(value: Any, at: str, cells: bool = False) -> str:
    """A context as text; passages are joined as their benchmark does.

    HotpotQA's titled sentences become LongBench's `Passage 1:`, title, text; HELMET's passages
    `Document (Title: ..): ..`; plain paragraphs are separated by a blank line. If the file holds
    nothing but text (`cells`, a csv), lists written as Python literals count too. Raises
    `UserError` for anything else.
    """
    if isinstance(value, str) and value[:1] in ("[", "{"):
        return text(_joined_cell(value, at, cells) or value, at)
    if isinstance(value, list | tuple | dict):
        joined = _titled(value) or _documents(value, at) or _paragraphs(value)
        if joined is not None:
            return text(joined, at)
    return text(value, at)


def _joined_cell(cell: str, at: str, cells: bool) -> str | None:
    """The passages that a text writes in JSON or Python; None if it is plain text."""
    pairs = cell.startswith(("[[", "[("))
    may_be_titled = pairs or (cell.startswith(("[{", "{'")) and "sentences" in cell)
    found = literal(cell) if cells or may_be_titled else None
    if isinstance(found, list | dict) and found and (joined := _titled(found)):
        return joined
    if not cells:
        return None
    if isinstance(found, list) and all(isinstance(v, dict) and _body(v) for v in found):
        return _documents(found, at)
    if isinstance(found, list) and (joined := _paragraphs(found)):
        return joined
    if "array([" in cell:  # printed by numpy, and not meant for a model
        raise UserError(f"{at}: a printed numpy array where text is needed; write it as text")
    return None


def _titled(value: Any) -> str | None:
    """HotpotQA's contexts: [title, sentences] each, or {title: [..], sentences: [..]}."""
    if isinstance(value, dict):
        titles, sentences = value.get("title"), value.get("sentences")
        if not isinstance(titles, list) or not isinstance(sentences, list):
            return None
        pairs = list(zip(titles, sentences, strict=False))
    elif value and all(isinstance(v, dict) and {"title", "sentences"} <= set(v) for v in value):
        pairs = [(v["title"], v["sentences"]) for v in value]
    else:
        pairs = [tuple(v) if isinstance(v, list | tuple) else () for v in value]
    passages = []
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2 or not isinstance(pair[0], str) or not _are_texts(pair[1]):
            return None
        body = " ".join(sentence.strip() for sentence in pair[1])
        passages.append(f"Passage {number}:\n{pair[0]}\n{body}")
    return "\n\n".join(passages) or None


def _documents(value: Any, at: str) -> str | None:
    """HELMET's passages: {title, text, ..} each."""
    if not isinstance(value, list | tuple) or not value:
        return None
    found = []
    for number, passage in enumerate(value, 1):
        if not isinstance(passage, dict):
            return None
        body = _body(passage)
        if body is None:
            raise UserError(
                f"{at}: passage {number} has no text, only {columns_of(passage) or 'nothing'}"
            )
        title = passage.get("title")
        head = "Document" if title is None else f"Document (Title: {text(title, at)})"
        found.append(f"{head}: {text(body, at)}")
    return "\n\n".join(found)


def _body(passage: Row) -> Any:
    return next((passage[k] for k in ("text", "paragraph_text") if k in passage), None)


def _paragraphs(value: Any) -> str | None:
    return "\n\n".join(value) if value and _are_texts(value) else None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)


def _objects(value: Any, at: str) -> list[Row]:
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise UserError(f"{at}: expected a list of objects, got {type(value).__name__}")
    return value
