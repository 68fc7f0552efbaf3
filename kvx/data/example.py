"""What a dataset source yields, and the protocol it follows."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Example:
    """One question with its context and reference answers, before tokenising.

    `cluster` names what must be resampled together (questions on one story); it defaults to the
    example itself.
    """

    example_id: str
    context: str
    question: str
    answers: tuple[str, ...]
    cluster: str = ""
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.cluster:
            object.__setattr__(self, "cluster", self.example_id)


class DatasetSource(Protocol):
    """A source of examples.

    Implementations are dataclasses named by `_target_` in `conf/dataset`.
    """

    def revision(self) -> str:
        """What identifies the data: changes whenever `examples()` would yield something else."""
        ...

    def examples(self) -> Iterator[Example]:
        """All examples, in a fixed order. Raises `UserError` naming file and line for bad data."""
        ...
