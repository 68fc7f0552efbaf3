"""QASPER (https://arxiv.org/abs/2105.03011, data under CC BY 4.0): all questions of a paper."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvx.data.example import Example
from kvx.data.files import Row, columns_of, existing_file, fingerprint, read_rows, read_text
from kvx.data.values import missing, text, texts
from kvx.errors import UserError, unreadable

VERSION = "1"
HINT = "set dataset.source.path to QASPER's file, such as qasper-test-v0.3.json"
NEEDED = ("title", "abstract", "full_text", "qas")
# as QASPER's evaluator calls what an annotator may answer
EXTRACTIVE, ABSTRACTIVE, BOOLEAN, NONE = "extractive", "abstractive", "boolean", "none"
UNANSWERABLE = "Unanswerable"


@dataclass
class QasperSource:
    """Papers of a JSON object by id, as QASPER publishes them, or rows as the hub has them.

    The context of a paper is its title, abstract and sections; every question has the answers of
    all annotators. Their types are kept in `Example.meta` (`answer_types`).
    """

    path: str

    def revision(self) -> str:
        return f"qasper-{VERSION}-{fingerprint(existing_file(self.path, HINT))[:12]}"

    def examples(self) -> Iterator[Example]:
        path = existing_file(self.path, HINT)
        for paper_id, paper in _papers(path):
            at = f"{path}: paper {paper_id}"
            if lacking := [name for name in NEEDED if name not in paper]:
                raise UserError(
                    f"{at}: not QASPER's layout: no {lacking[0]!r}; it has {columns_of(paper)}"
                )
            context = _context(paper, at)
            for question in _listed(paper["qas"], f"{at}: 'qas'"):
                named = text(question.get("question_id"), f"{at}: 'question_id'")
                where = f"{at}: question {named}"
                given = _listed(question.get("answers"), f"{where}: 'answers'")
                found = [_answer(_inner(answer, where), where) for answer in given]
                if not found:
                    raise UserError(f"{where}: no answers; every example needs one")
                yield Example(
                    example_id=named,
                    context=context,
                    question=text(question.get("question"), f"{where}: 'question'"),
                    answers=tuple(answer for answer, _ in found),
                    cluster=paper_id,
                    meta={"answer_types": [kind for _, kind in found]},
                )


def _papers(path: Path) -> Iterator[tuple[str, Row]]:
    if path.suffix == ".json":
        try:
            document = json.loads(read_text(path))
        except ValueError as error:
            raise unreadable(path, error) from None
        if isinstance(document, dict) and all(isinstance(p, dict) for p in document.values()):
            yield from document.items()
            return
    for number, row in enumerate(read_rows(path), 1):
        yield text(row.get("id", f"row-{number:05d}"), f"{path}: row {number}: 'id'"), row


def _context(paper: Row, at: str) -> str:
    parts = [text(paper["title"], f"{at}: 'title'"), text(paper["abstract"], f"{at}: 'abstract'")]
    for section in _listed(paper["full_text"], f"{at}: 'full_text'"):
        name = section.get("section_name")
        lines = [] if missing(name) else [text(name, f"{at}: 'section_name'")]
        lines += texts(section.get("paragraphs"), f"{at}: 'paragraphs'")
        parts.append("\n".join(lines))
    return "\n\n".join(part for part in parts if part)


def _inner(answer: Row, at: str) -> Row:
    """What one annotator said; the hub's rows hold it as it is, the file within `answer`."""
    inner = answer.get("answer", answer)
    if not isinstance(inner, dict):
        raise UserError(f"{at}: 'answer': expected an object, got {type(inner).__name__}")
    return inner


def _answer(said: Row, at: str) -> tuple[str, str]:
    """An annotator's answer as text, and its type, as QASPER's evaluator reads them."""
    if said.get("unanswerable"):
        return UNANSWERABLE, NONE
    if spans := texts(said.get("extractive_spans"), f"{at}: 'extractive_spans'"):
        return ", ".join(spans), EXTRACTIVE
    free = said.get("free_form_answer")
    if not missing(free) and free != "":
        return text(free, f"{at}: 'free_form_answer'"), ABSTRACTIVE
    if said.get("yes_no") is not None:
        return ("Yes" if said["yes_no"] else "No"), BOOLEAN
    raise UserError(f"{at}: an answer that is of no type; it has {columns_of(said)}")


def _listed(value: Any, at: str) -> list[Row]:
    """A list of objects; the hub's rows write one as an object of lists."""
    if isinstance(value, dict):
        columns = {k: v for k, v in value.items() if isinstance(v, list | tuple)}
        size = max((len(v) for v in columns.values()), default=0)
        if columns and all(len(v) == size for v in columns.values()):
            value = [{k: v[i] for k, v in columns.items()} for i in range(size)]
    if not isinstance(value, list | tuple) or not all(isinstance(v, dict) for v in value):
        raise UserError(f"{at}: expected a list of objects, got {type(value).__name__}")
    return list(value)
