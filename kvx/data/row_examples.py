"""From a row of data to an example, whichever file or benchmark it comes from."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from kvx.data import values
from kvx.data.example import Example
from kvx.data.files import Row, columns_of
from kvx.data.layouts import AUTO, LAYOUTS, NAMES, NEEDED, ROLES, Layout, context_of, detected
from kvx.errors import UserError
from kvx.identity.hashing import sha256_text

log = logging.getLogger(__name__)

VERSION = "2"  # of this reader; in the revision of data that version 1 read differently


@dataclass(frozen=True)
class Reading:
    """How rows are read: their layout (or `auto`), and columns by role where they differ.

    A role whose column is None is not read. `prefix` begins every id; a row without an id is called
    `row_id`, counted from `from_row`. `cells`: the file holds nothing but text (csv). Columns of
    `meta` are kept in `Example.meta` as they are, where they hold something. Questions that SQuAD
    marks as unanswerable are left out, or have `unanswerable` as their answer.
    """

    layout: str = AUTO
    fields: Mapping[str, str | None] | None = None
    prefix: str = ""
    row_id: str = "row-{:05d}"
    from_row: int = 1
    cells: bool = False
    meta: tuple[str, ...] = ()
    unanswerable: str | None = None


def check_layout(name: str) -> None:
    if name not in NAMES:
        raise UserError(f"dataset.source.layout={name}: choose from {', '.join(NAMES)}")


def check_fields(fields: Mapping[str, str | None]) -> None:
    unknown = sorted(set(fields) - set(ROLES))
    if unknown:
        raise UserError(
            f"dataset.source.fields: unknown {', '.join(unknown)}; it maps {', '.join(ROLES)}"
        )
    lost = [role for role in NEEDED if fields.get(role, role) is None]
    if lost:
        raise UserError(f"dataset.source.fields.{lost[0]}: every example needs it; name a column")


def examples(rows: Iterable[Row], where: str, reading: Reading) -> Iterator[Example]:
    """The examples of `rows`. Raises `UserError` naming `where`, row and column for bad data.

    Questions that are left out are counted in the log.
    """
    layout: Layout | None = None
    seen: dict[str, int] = {}
    n_unanswerable = 0
    for number, row in enumerate(rows, 1):
        at = f"{where}: row {number}"
        layout = layout or _layout(row, reading, at)
        for question in layout.rows(row, at):
            answers = layout.column("answers", question)
            if values.is_unanswerable(question.get(answers)):
                if reading.unanswerable is None:
                    n_unanswerable += 1
                    continue
                question = {**question, answers: reading.unanswerable}
            order = len(seen) if layout.many else number - 1
            example = _example(question, layout, at, reading, order)
            if example.example_id in seen:
                raise UserError(
                    f"{at}: id {example.example_id!r} occurs twice (first in row "
                    f"{seen[example.example_id]}); ids must be unique"
                )
            seen[example.example_id] = number
            yield example
    if n_unanswerable:
        log.warning(
            "prepare: %s: %d questions have no answer (answers.text is empty) and are left out",
            where,
            n_unanswerable,
        )


def _layout(row: Row, reading: Reading, at: str) -> Layout:
    if {"needle", "questions"} <= set(row):
        raise UserError(
            f"{at}: a NoLiMa needle set, which holds templates; write rows of one question with "
            "its needle placed in a haystack (columns context, question, answers)"
        )
    fields = dict(reading.fields or {})
    named = any(fields.get(role, role) != role for role in NEEDED)
    name = reading.layout
    if name == AUTO:
        name = "plain" if named else detected(row)
    layout = LAYOUTS[name]
    own = {role: () if c is None else (c,) for role, c in fields.items() if c != role}
    return replace(layout, columns={**layout.columns, **own}) if own else layout


def _example(row: Row, layout: Layout, at: str, reading: Reading, index: int) -> Example:
    name = {role: layout.column(role, row) for role in ROLES if layout.columns[role]}
    for role in NEEDED:
        if name[role] not in row:
            raise UserError(
                f"{at}: no field {name[role]!r} for {role}; it has {columns_of(row)} (set "
                f"dataset.source.fields.{role}, or dataset.source.layout)"
            )

    def cell(role: str) -> Any:
        return row.get(name[role]) if role in name else None

    def place(role: str) -> str:
        return f"{at}: {name[role]!r}"

    for role in ("context", "question"):
        value, needed = cell(role), role == "context" or layout.wants_question
        empty = values.missing(value) or (isinstance(value, str) and not value.strip())
        if empty and needed:
            raise UserError(f"{at}: empty {name[role]!r}; every example needs a {role}")
    context = context_of(cell("context"), place("context"), reading.cells)
    question, answer_prefix = (
        None if values.missing(cell(role)) else values.text(cell(role), place(role))
        for role in ("question", "answer_prefix")
    )
    answers = values.texts(cell("answers"), place("answers"))
    if not answers:
        raise UserError(f"{at}: no answers in {name['answers']!r}; every example needs one")
    own_id = values.label(cell("id"), place("id")) if "id" in name else None
    cluster = values.label(cell("cluster"), place("cluster")) if "cluster" in name else None
    row_id = reading.row_id.format(index + reading.from_row)
    return Example(
        example_id=reading.prefix + (row_id if own_id is None else own_id),
        context=context,
        question=question or "",
        answers=answers,
        cluster=sha256_text(context)[:12] if cluster is None else cluster,
        answer_prefix=answer_prefix,
        max_new_tokens=_limit(cell("max_new_tokens"), at),
        formatted=layout.formatted,
        meta={n: row[n] for n in (*reading.meta, *layout.kept) if not values.missing(row.get(n))},
    )


def _limit(value: Any, at: str) -> int | None:
    if values.missing(value) or value == "":
        return None
    try:  # pandas writes 5.0 into a csv column with missing values
        number = Decimal(values.text(value, f"{at}: 'max_new_tokens'"))
    except InvalidOperation:
        number = Decimal(0)
    if not number.is_finite() or number < 1 or number != int(number):
        raise UserError(
            f"{at}: max_new_tokens={value}: must be a whole number of at least 1, or missing"
        )
    return int(number)


def were_plain(rows: Iterable[Row], fields: Mapping[str, str | None], cells: bool = False) -> bool:
    """Whether version 1 read these rows with the same meaning: strings, numbers, flat lists.

    It turned other types into their Python text, took zero for missing, and knew five columns.
    """
    name = {role: fields.get(role, role) for role in ROLES}
    return all(
        _was_plain({r: row.get(c) for r, c in name.items() if c}, row, name, cells) for row in rows
    )


def _was_plain(
    cells: dict[str, Any], row: Row, name: Mapping[str, str | None], only_text: bool
) -> bool:
    if any(name[role] not in row for role in NEEDED):
        return False
    if not all(values.missing(cells.get(r)) for r in ("answer_prefix", "max_new_tokens")):
        return False
    if not all(isinstance(cells[r], str) for r in ("context", "question")):
        return False
    context = cells["context"]
    if context[:1] in ("[", "{") and context != context_of(context, "", only_text):
        return False
    labels = (cells.get(role) for role in ("id", "cluster"))
    if not all(v is None or isinstance(v, str) or (type(v) is int and v) for v in labels):
        return False
    answers = cells["answers"]
    if isinstance(answers, str):
        found = values.listed(answers)
        if found is not answers and values.from_json(answers) is None:
            return False
        answers = found
    items = answers if isinstance(answers, list) else [answers]
    return all(v is None or isinstance(v, str) or type(v) is int for v in items)
