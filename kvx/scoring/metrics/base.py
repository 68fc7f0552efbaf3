"""A metric: a pure function (prediction, reference answers) -> Score, with its properties."""

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from kvx.errors import UserError, first_line, show_traceback, shown


@dataclass(frozen=True)
class Score:
    """A metric's value and the normalised texts it compared, with the best matching reference."""

    value: float
    prediction: str
    reference: str


Function = Callable[..., Score | float]
Fits = Callable[[Sequence[str]], str | None]  # of references: why a metric is not for them
NOTHING: Mapping[str, Any] = {}
# True: 0 or 1 for every answer; "one reference": for answers with a single reference
Binary = bool | Literal["one reference"]


@dataclass(frozen=True)
class Metric:
    """A function and its properties.

    Certificates use an exact test where values are `binary`. Without `higher_is_better` a rise
    counts as a loss in comparisons. The primary metric has it: transitions and findings look for
    falls. `fits` says of an example's references why the metric is not for them, `reads` names
    fields of its row that the function takes by name, `needs` modules of an extra of kvx.
    """

    function: Function
    binary: Binary = False
    higher_is_better: bool = True
    fits: Fits | None = None
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.function.__name__

    def is_binary(self, n_references: int) -> bool:
        """Whether every value is 0 or 1 for answers with this many references."""
        return n_references == 1 if self.binary == "one reference" else self.binary is True

    def refusal(self, answers: Sequence[str], row: Mapping[str, Any] = NOTHING) -> str | None:
        """Why the metric is not for an example with these references; None if it is.

        `row` has the fields of the example's row beside its context, question and answers.
        """
        if missing := [name for name in self.reads if row.get(name) is None]:
            return f"no {missing[0]} in its row"
        return self.fits(answers) if self.fits is not None else None

    def __call__(
        self, prediction: str, answers: Sequence[str], row: Mapping[str, Any] = NOTHING
    ) -> Score:
        """The score; a function that returns a number compares the texts as they are."""
        found = self.function(prediction, answers, **{name: row[name] for name in self.reads})
        return found if isinstance(found, Score) else Score(found, prediction, " | ".join(answers))


@overload
def metric(function: Function, /) -> Metric: ...
@overload
def metric(
    *,
    binary: Binary = ...,
    higher_is_better: bool = ...,
    fits: Fits | None = ...,
    reads: tuple[str, ...] = ...,
    needs: tuple[str, ...] = ...,
) -> Callable[[Function], Metric]: ...
def metric(
    function: Function | None = None, /, **properties: Any
) -> Metric | Callable[[Function], Metric]:
    """Make a function (prediction, references) -> `Score` or number in [0, 1] a metric.

    The properties are those of `Metric`.

    >>> @metric(binary=True)
    ... def is_short(prediction, answers):
    ...     return float(len(prediction) < 10)
    >>> is_short("yes", []).value
    1.0
    """
    if function is not None:
        return Metric(function)
    return lambda function: Metric(function, **properties)


def measured(
    name: str,
    metric: Metric,
    text: str,
    answers: Sequence[str],
    request: str,
    row: Mapping[str, Any] = NOTHING,
) -> Score:
    """The metric's score of one request.

    Raises `UserError` with the metric's name and the request's id if the metric is not for the
    request's references, raises, or returns a value outside [0, 1].
    """
    where = f"metric {name}: request {request}"
    if wrong := metric.refusal(answers, row):
        raise UserError(f"{where}: {wrong}; choose another metric")
    try:
        score = metric(text, answers, row)
    except UserError:
        raise
    except Exception as error:
        show_traceback(error, metric)
        at = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{where}: raises {said} ({at.filename}:{at.lineno})") from error
    try:
        value = float(score.value)
    except (TypeError, ValueError):
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{where}: returns {shown(score.value)}; a score is a number from 0 to 1")
    if 0.0 < value < 1.0 and metric.is_binary(len(answers)):
        raise UserError(f"{where}: returns {value:g}; declared binary, it must be 0 or 1")
    return Score(value, score.prediction, score.reference)


def best(ours: str, references: Sequence[str], value: Callable[[str, str], float]) -> Score:
    """The first reference with the highest value; without references the value is 0."""
    scores = (Score(value(ours, reference), ours, reference) for reference in references)
    return max(scores, key=lambda score: score.value, default=Score(0.0, ours, ""))


def equal(ours: str, reference: str) -> float:
    return float(ours != "" and ours == reference)
