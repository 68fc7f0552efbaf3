"""A metric: a pure function (prediction, reference answers) -> Score, with its properties."""

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from kvx.errors import UserError, first_line, show_traceback, shown


@dataclass(frozen=True)
class Score:
    """A metric's value and the normalised texts it compared, with the best matching reference."""

    value: float
    prediction: str
    reference: str


Function = Callable[[str, Sequence[str]], Score | float]
# True: 0 or 1 for every answer; "one reference": for answers with a single reference
Binary = bool | Literal["one reference"]


@dataclass(frozen=True)
class Metric:
    """A function and its properties.

    Certificates use an exact test where values are `binary`. Without `higher_is_better` a rise
    counts as a loss in comparisons. The primary metric has it: transitions and findings look for
    falls.
    """

    function: Function
    binary: Binary = False
    higher_is_better: bool = True

    @property
    def name(self) -> str:
        return self.function.__name__

    def is_binary(self, n_references: int) -> bool:
        """Whether every value is 0 or 1 for answers with this many references."""
        return n_references == 1 if self.binary == "one reference" else self.binary is True

    def __call__(self, prediction: str, answers: Sequence[str]) -> Score:
        """The score; a function that returns a number compares the texts as they are."""
        found = self.function(prediction, answers)
        return found if isinstance(found, Score) else Score(found, prediction, " | ".join(answers))


@overload
def metric(function: Function, /) -> Metric: ...
@overload
def metric(
    *, binary: Binary = False, higher_is_better: bool = True
) -> Callable[[Function], Metric]: ...
def metric(
    function: Function | None = None, /, *, binary: Binary = False, higher_is_better: bool = True
) -> Metric | Callable[[Function], Metric]:
    """Make a function (prediction, references) -> `Score` or number in [0, 1] a metric.

    >>> @metric(binary=True)
    ... def is_short(prediction, answers):
    ...     return float(len(prediction) < 10)
    >>> is_short("yes", []).value
    1.0
    """
    if function is not None:
        return Metric(function)
    return lambda function: Metric(function, binary, higher_is_better)


def measured(name: str, metric: Metric, text: str, answers: Sequence[str], request: str) -> Score:
    """The metric's score of one request.

    Raises `UserError` with the metric's name and the request's id if the metric raises or returns a
    value outside [0, 1].
    """
    where = f"metric {name}: request {request}"
    try:
        score = metric(text, answers)
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
