"""A tokenizer's chat template: what it makes of messages, on a given day.

Templates are programs. They read the clock (`strftime_now`), take the content of a message as text
or as a list of parts, and may refuse, repeat or change it. What they do is found by rendering.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from functools import cached_property
from typing import Any

from kvx.errors import UserError, first_line

Messages = Sequence[Mapping[str, Any]]
CLOCK = "strftime_now"  # transformers' global of every template
HINT = "set model.chat_template=false to ask without it, or mend the tokenizer's chat template"
PROBE = "Ab 1"
# what a rendering is told otherwise, or what would make of it another thing than a text
RESERVED = (
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "documents",
    "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict",
    "return_tensors", "strftime_now", "tokenize", "tokenizer_kwargs", "tools", "truncation",
)  # fmt: skip


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

    `date` (YYYY-MM-DD) is the day that the template is told, `settings` is what else it is told.
    `system` is a message before those that have none of their own. Raises `UserError` for a
    template without a default.
    """

    tokenizer: Any
    model: str
    date: str | None = None
    system: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

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
            except Exception as error:  # noqa: BLE001  a template raises what it likes
                said = said or error
            else:
                if mark in text:
                    return form
        if said is not None:
            raise self._error(f"refuses a user message ({first_line(said)})")
        raise self._error("leaves out what a user message says")

    @cached_property
    def _first(self) -> list[dict[str, str]]:
        """The system message, if there is one. Raises `UserError` if the template takes none."""
        if self.system is None:
            return []
        mark = _mark(self.system + PROBE)
        user = {"role": "user", "content": PROBE}
        hint = "leave out prompt.system"
        try:
            text = self.render([{"role": "system", "content": self.system + mark}, user])
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  a template raises what it likes
            raise self._error(f"takes no system message ({first_line(error)})", hint) from None
        if mark not in text:
            raise self._error("leaves out a system message", hint)
        return [{"role": "system", "content": self.system}]

    def with_system(self, messages: Messages) -> Messages:
        """`messages` behind the system message, unless they begin with one.

        Raises `UserError` if the template takes none.
        """
        own = bool(messages) and messages[0]["role"] in ("system", "developer")
        return messages if own else [*self._first, *messages]

    def render(
        self,
        messages: Messages,
        form: Form | None = None,
        at: datetime | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> str:
        """`messages` up to where the model is to answer. Raises what the template raises.

        A template that asks for the time is told `at`, else the beginning of the day `date`.
        `settings` come before the template's own.
        """
        if (form or self.form) is Form.parts:
            messages = [{**m, "content": _parts(m["content"])} for m in messages]
        extra = {"enable_thinking": False, **self.settings, **(settings or {})}
        if self.dated:
            if at is None and self.date is None:
                raise self._error("asks for the date, and none was kept", "make a new manifest")
            extra[CLOCK] = (at or datetime.fromisoformat(self.date or "")).strftime
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                tokenize=False,
                **extra,
            )
        )

    def around(self, content: str) -> tuple[str, str]:
        """A user message that begins with `content`: the text up to its end, and what follows.

        White space at the beginning of `content` is the template's to drop. Raises `UserError`
        for a template that changes anything else, repeats it or leaves it out.
        """
        form, mark = self.form, _mark((self.system or "") + content)
        messages = self.with_system([{"role": "user", "content": content + mark}])
        try:
            text = self.render(messages, form)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  a template raises what it likes
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
