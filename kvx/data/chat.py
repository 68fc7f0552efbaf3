"""A tokenizer's chat template: what it makes of messages, on a given day.

Templates are programs. They read the clock (`strftime_now`), take the content of a message as text
or as a list of parts, and may refuse, repeat or change it. What they do is found by rendering.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import cached_property
from typing import Any

from kvx.errors import UserError, first_line

Messages = Sequence[Mapping[str, Any]]
CLOCK = "strftime_now"  # transformers' global of every template
HINT = "set model.chat_template=false to ask without it, or mend the tokenizer's chat template"
PROBE = "Ab 1"


class Form(Enum):
    """How a template takes the content of a message."""

    text = "text"
    parts = "parts"  # [{"type": "text", "text": ...}]


def default_template(chat_template: Any) -> str | None:
    """The template that is used where none is named; None if there is none.

    `chat_template` is that of a tokenizer or of a tokenizer_config.json: a text, a mapping of
    names, or a list of {name, template}.
    """
    if isinstance(chat_template, list):
        named = [t for t in chat_template if isinstance(t, dict)]
        chat_template = {t.get("name"): t.get("template") for t in named}
    if isinstance(chat_template, dict):
        chat_template = chat_template.get("default")
    return chat_template if isinstance(chat_template, str) else None


def is_dated(chat_template: Any) -> bool:
    """Whether what a template renders may depend on the day it is rendered."""
    return CLOCK in (default_template(chat_template) or "")


def today() -> str:
    """The local date, as `prompt.date` is written."""
    return datetime.now().date().isoformat()


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of `tokenizer`; `model` is the name that errors tell.

    `date` (YYYY-MM-DD) is the day that the template is told. Raises `UserError` for a template
    without a default.
    """

    tokenizer: Any
    model: str
    date: str | None = None

    def __post_init__(self) -> None:
        templates = self.tokenizer.chat_template
        if default_template(templates) is None:
            names = ", ".join(sorted(templates)) if isinstance(templates, dict) else "none"
            raise self._error(f"has no default (named: {names})")

    @property
    def dated(self) -> bool:
        return is_dated(self.tokenizer.chat_template)

    @cached_property
    def form(self) -> Form:
        """Text if the template takes that, else parts. Raises `UserError` if it takes neither."""
        said: Exception | None = None
        mark = _mark(PROBE)
        for form in Form:
            try:
                text = self.render([{"role": "user", "content": PROBE + mark}], form)
            except UserError:
                raise
            except Exception as error:  # templates refuse in many ways: roles, order, types
                said = said or error
            else:
                if mark in text:
                    return form
        if said is not None:
            raise self._error(f"refuses a user message ({first_line(said)})")
        raise self._error("leaves out what a user message says")

    def render(
        self, messages: Messages, form: Form | None = None, at: datetime | None = None
    ) -> str:
        """`messages` up to where the model is to answer. Raises what the template raises.

        A template that asks for the time is told `at`, else the beginning of the day `date`.
        """
        if (form or self.form) is Form.parts:
            messages = [{**m, "content": _parts(m["content"])} for m in messages]
        extra: dict[str, Any] = {}
        if self.dated:
            if at is None and self.date is None:
                raise self._error("asks for the date, and none was kept", "make a new manifest")
            extra[CLOCK] = (at or datetime.fromisoformat(self.date or "")).strftime
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                tokenize=False,
                enable_thinking=False,
                **extra,
            )
        )

    def around(self, content: str) -> tuple[str, str]:
        """A user message that begins with `content`: the text up to its end, and what follows.

        White space at the beginning of `content` is the template's to drop. Raises `UserError`
        for a template that changes anything else, repeats it or leaves it out.
        """
        form, mark = self.form, _mark(content)
        try:
            text = self.render([{"role": "user", "content": content + mark}], form)
        except UserError:
            raise
        except Exception as error:
            raise self._error(f"refuses a user message ({first_line(error)})") from None
        before, _, after = text.partition(mark)
        if (found := text.count(mark)) > 1:
            raise self._error("repeats what a user message says")
        if not found or not before.endswith(content.lstrip()):
            raise self._error("changes what a user message says")
        return before, after

    def _error(self, what: str, hint: str = HINT) -> UserError:
        return UserError(f"model={self.model}: its chat template {what}; {hint}")


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _mark(content: str) -> str:
    """A text that is not in `content`, nor begins in its end, and that no change of case reaches.

    Its first character is not in the rest of it, so that it cannot overlap itself.
    """
    number = 0
    while (mark := f"@{number:04}#;") in content:
        number += 1
    return mark
