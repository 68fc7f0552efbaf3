"""A tokenizer's chat template: what it makes of messages, on a given day.

Templates are programs. They read the clock (`strftime_now`), take a message's content as text or as
a list of parts, and may refuse, repeat or change it. kvx renders them to find out.
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
# arguments of a rendering that kvx sets, or that would give something other than text
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
    """The template that is used if none is named; None if there is none.

    `chat_template` comes from a tokenizer or a tokenizer_config.json: a text, a mapping of names,
    or a list of {name, template}.
    """
    if isinstance(chat_template, list):
        named = [t for t in chat_template if isinstance(t, dict)]
        chat_template = {t.get("name"): t.get("template") for t in named}
    if isinstance(chat_template, dict):
        chat_template = chat_template.get("default")
    return chat_template if isinstance(chat_template, str) else None


def is_dated(chat_template: Any) -> bool:
    """Whether what a template renders may depend on the day."""
    return CLOCK in (default_template(chat_template) or "")


def today() -> str:
    """The local date, in the format of `prompt.date`."""
    return datetime.now().date().isoformat()


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of `tokenizer`; errors name `model`.

    The template is told `date` (YYYY-MM-DD) as the day, and `settings` besides. `system` is a
    message for conversations without one. Raises `UserError` for a template without a default.
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
        refusal: Exception | None = None
        mark = _mark(PROBE)
        for form in Form:
            try:
                text = self.render([{"role": "user", "content": PROBE + mark}], form)
            except UserError:
                raise
            except Exception as error:  # noqa: BLE001  a template raises what it likes
                refusal = refusal or error
            else:
                if mark in text:
                    return form
        if refusal is not None:
            raise self._error(f"refuses a user message ({first_line(refusal)})")
        raise self._error("leaves out what a user message says")

    @cached_property
    def _first(self) -> list[dict[str, str]]:
        """The system message, if there is one. Raises `UserError` if the template takes none."""
        if self.system is None:
            return []
        mark, hint = _mark(self.system + PROBE), "leave out prompt.system"
        messages = [
            {"role": "system", "content": self.system + mark},
            {"role": "user", "content": PROBE},
        ]
        if mark not in self._rendered(messages, "takes no system message", hint):
            raise self._error("leaves out a system message", hint)
        return [{"role": "system", "content": self.system}]

    def with_system(self, messages: Messages) -> Messages:
        """`messages` behind the system message, unless they begin with one. Raises as `_first`."""
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

        A template that asks for the time gets `at`, else the beginning of the day `date`.
        `settings` override the template's own.
        """
        if (form or self.form) is Form.parts:
            messages = [{**m, "content": _parts(m["content"])} for m in messages]
        extra = {"enable_thinking": False, **self.settings, **(settings or {})}
        if self.dated:
            if at is None and self.date is None:
                raise self._error("asks for the date, and none was kept", "make a new manifest")
            extra[CLOCK] = (at or datetime.fromisoformat(self.date or "")).strftime
        extra |= {"add_generation_prompt": True, "tokenize": False}
        return str(self.tokenizer.apply_chat_template(list(messages), **extra))

    def around(self, content: str) -> tuple[str, str]:
        """A user message that begins with `content`: the text up to its end, and what follows.

        The template may drop white space at the beginning. Raises `UserError` if it changes
        anything else, repeats the content or leaves it out.
        """
        mark = _mark((self.system or "") + content)
        messages = self.with_system([{"role": "user", "content": content + mark}])
        text = self._rendered(messages, "refuses a user message")
        before, _, after = text.partition(mark)
        if (found := text.count(mark)) > 1:
            raise self._error("repeats what a user message says")
        if not found or not before.endswith(content.lstrip()):
            raise self._error("changes what a user message says")
        return before, after

    def _rendered(self, messages: Messages, refusal: str, hint: str = HINT) -> str:
        try:
            return self.render(messages)
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001  a template raises what it likes
            raise self._error(f"{refusal} ({first_line(error)})", hint) from None

    def _error(self, what: str, hint: str = HINT) -> UserError:
        return UserError(f"model={self.model}: its chat template {what}; {hint}")


def _parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _mark(content: str) -> str:
    """A text that is not in `content`, does not begin in its end, and survives a change of case.

    Its first character does not recur in it, so that it cannot overlap itself.
    """
    number = 0
    while (mark := f"@{number:04}#;") in content:
        number += 1
    return mark
