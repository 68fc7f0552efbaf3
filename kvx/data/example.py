"""What a dataset source yields, and the protocol it follows."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from kvx.data.values import checked
from kvx.errors import UserError, shown


@dataclass(frozen=True)
class Example:
    """One question with its context and reference answers, before tokenising.

    `cluster` names what must be resampled together (questions on one story); by default the example
    itself. `answer_prefix` and `max_new_tokens` override the dataset's own. A `formatted` example
    is in its benchmark's wording: no template is put around it. Raises `UserError` for a field of a
    wrong type, so that no Python repr gets into a prompt.
    """

    example_id: str
    context: str
    question: str
    answers: tuple[str, ...]
    cluster: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    answer_prefix: str | None = None
    max_new_tokens: int | None = None
    formatted: bool = False

    def __post_init__(self) -> None:
        if self.cluster == "":
            object.__setattr__(self, "cluster", self.example_id)
        for name in ("example_id", "context", "question", "cluster"):
            self._check(name, getattr(self, name))
        if self.answer_prefix is not None:
            self._check("answer_prefix", self.answer_prefix)
        if not isinstance(self.answers, tuple | list):
            raise self._wrong("answers", self.answers, "a tuple of strings")
        for answer in self.answers:
            self._check("answers", answer)
        limit = self.max_new_tokens
        if limit is not None and (type(limit) is not int or limit < 1):
            raise self._wrong("max_new_tokens", limit, "a whole number of at least 1")

    def _check(self, name: str, value: object) -> None:
        if not isinstance(value, str):
            raise self._wrong(name, value, "a string")
        checked(value, f"example {shown(self.example_id)}: {name}")

    def _wrong(self, name: str, value: object, wanted: str) -> UserError:
        return UserError(
            f"example {shown(self.example_id)}: {name} must be {wanted}, not "
            f"{type(value).__name__} {shown(value)}"
        )


class DatasetSource(Protocol):
    """A source of examples: a dataclass named by `_target_` in `conf/dataset`.

    One that generates to a length in tokens has `examples_for(builder, max_new_tokens)` in place of
    `examples`: `builder` (`kvx.data.prompt.PromptBuilder`) makes and counts the model's prompts.
    """

    def revision(self) -> str:
        """Identifies the data: changes whenever `examples()` would yield something else."""
        ...

    def examples(self) -> Iterator[Example]:
        """All examples, in a fixed order. Raises `UserError` naming file and line for bad data."""
        ...
