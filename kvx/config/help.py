"""The schema's fields as text for --help and as the page docs/fields.md.

`python -m kvx.config.help > docs/fields.md` writes the page anew.
"""

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_args, get_origin

from omegaconf import MISSING

from kvx.config.controller import ControllerConfig
from kvx.config.field_names import class_of, fields_of
from kvx.config.fields import About, about
from kvx.config.numbers import exact
from kvx.config.schema import Config

WIDTH = 96
PAGE = """# Fields of the configuration

Generated from the schema in `kvx/config` by `python -m kvx.config.help > docs/fields.md`. Options \
of a group (`conf/dataset/`, `conf/press/`, …) give their own values to the fields of the group.

*Changes* says what a field can change. **results**: it is part of a point's id. **near ties**: it \
is kept with every response, because it changes how sums are rounded. **derived**: what follows \
from the value is part of the id, the value is not. **scores**: how answers are scored. **as** \
another field: that one takes the value over, and is part of the id. **nothing**: no answer and no \
score. Fields of a later stage (`analyze`, `train`, …) change what that stage writes.
"""


@dataclass(frozen=True)
class Entry:
    """A field by its dotted name, and what is known of it."""

    name: str
    type: str
    default: str
    about: About
    neutral: bool  # itself, or a section that it is in

    @property
    def range(self) -> str:
        known = self.about
        return ", ".join(known.choices) if known.choices else str(known.limits or "")

    @property
    def changes(self) -> str:
        known = self.about
        if known.recorded:
            return "near ties"
        if known.derived or known.identity is not None:
            return "derived"
        if known.taken_over:
            return f"as `{known.taken_over}`"
        if known.scoring:
            return "scores"
        return "nothing" if self.neutral or known.label or known.sweeps else "results"


def describe(sections: Sequence[str]) -> str:
    """Some sections and fields of the top level: each field with its default and its help.

    "" is the whole top level.
    """
    lines: list[str] = []
    alone = {entry.name: entry for entry in entries(deep=False)}
    for section in sections:
        known = [alone[section]] if section in alone else entries(section, deep=bool(section))
        for entry in known:
            said = [entry.about.help]
            if entry.range:
                said.append(f"({entry.range})")
            lines.append(f"  {entry.name}={entry.default}")
            text = " ".join(filter(None, said))
            lines += textwrap.wrap(text, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


def entries(section: str = "", deep: bool = True, neutral: bool = False) -> Iterator[Entry]:
    """The fields of a section, those of the sections inside it (if `deep`) after its own."""
    inner: list[tuple[str, bool]] = []
    for name, f in fields_of(section).items():
        path, known = f"{section}.{name}" if section else name, about(f)
        if _class(f) is not None and get_origin(f.type) is not list:
            inner.append((path, neutral or known.neutral))
        else:
            yield Entry(path, _type(f.type), _default(f), known, neutral or known.neutral)
    for path, unread in inner if deep else ():
        yield from entries(path, neutral=unread)


def page() -> str:
    """docs/fields.md."""
    parts = [PAGE]
    top = [f.name for f in dataclasses.fields(Config) if _class(f) is not None]
    for section in ("", *top):
        parts.append(f"\n## {section or 'Of no group'}\n")
        known = _class(Config.__dataclass_fields__[section]) if section else Config
        doc = (known.__doc__ or "") if known is not None else ""
        if not doc.startswith(f"{known.__name__}(" if known is not None else "("):
            parts.append(_paragraphs(doc))
        parts.append("| field | type | default | range | changes | |\n|---|---|---|---|---|---|")
        neutral = bool(section) and about(Config.__dataclass_fields__[section]).neutral
        for e in entries(section, deep=bool(section), neutral=neutral):
            cells = (f"`{e.name}`", e.type, f"`{e.default}`", e.range, e.changes, e.about.help)
            parts.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join(parts) + "\n"


def _class(f: dataclasses.Field[Any]) -> type | None:
    """The class of a section; of `controller`, what the classes of all controllers share."""
    if f is Config.__dataclass_fields__["controller"]:
        return ControllerConfig
    return class_of(f.type)


def _paragraphs(doc: str) -> str:
    first, _, rest = doc.partition("\n")
    return f"{first}\n{textwrap.dedent(rest)}".strip() + "\n"


def _type(annotation: Any) -> str:
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return " \\| ".join(member.name for member in annotation).replace("\\|", "or")
    if annotation is type(None):
        return "null"
    if annotation is Any:
        return "any"
    if (origin := get_origin(annotation)) in (list, dict):
        return f"{origin.__name__} of {_type(get_args(annotation)[-1])}"
    if parts := get_args(annotation):
        return " or ".join(map(_type, parts))
    return str(annotation.__name__)


def _default(f: dataclasses.Field[Any]) -> str:
    made = f.default_factory
    return _shown(f.default if made is dataclasses.MISSING else made())


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, float):
        return exact(value)
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return "(to be given)" if value == MISSING else repr(value) if value == "" else str(value)


if __name__ == "__main__":
    print(page(), end="")
