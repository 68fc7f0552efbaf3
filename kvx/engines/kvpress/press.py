"""From a press's configuration to kvpress's object, fresh for every request."""

from dataclasses import dataclass, replace
from typing import Any

from kvx.config import conditions
from kvx.config.press_choices import PressNeed, Queries
from kvx.config.press_config import PressConfig
from kvx.errors import UserError
from kvx.points import Point

# these run alone; the other needs are met in a shared forward pass
ALONE = {PressNeed.changes_forward, PressNeed.masks}


_QUERIES = "_kvx_queries"  # on a press


@dataclass(frozen=True)
class PointPress:
    """A point's press for prompts whose compressed part has `n_tokens`.

    With a `budget`, the same press at another one than the point's. The question is the last
    `question_tokens` of the part, where a press has to know.
    """

    point: Point
    n_tokens: int
    budget: float | None = None
    question_tokens: int = 0

    def build(self) -> Any | None:
        """A new kvpress press; None where nothing is dropped.

        A press keeps state on itself and on the model, so none is ever used twice.
        """
        ratio = self.point.compression_ratio(self.n_tokens)
        if self.budget is not None:
            ratio = 1.0 - self.budget
        if ratio == 0.0:
            return None
        config = self.point.config.press
        press = with_queries(instantiate(config, ratio), config.queries)
        if hasattr(press, "asked_with"):
            press.asked_with(self.question_tokens)
        return press

    def at(self, budget: float) -> "PointPress":
        return replace(self, budget=budget)

    @property
    def reads_weights(self) -> bool:
        """Whether the press reads attention weights."""
        return PressNeed.attention_weights in self.point.config.press.needs

    @property
    def method_key(self) -> str | None:
        """The same for presses that differ in their budget only; None if that changes scores."""
        config = self.point.config.press
        return None if config.score_uses_budget else repr((config.method, config.queries))


def instantiate(config: PressConfig, ratio: float) -> Any:
    """The press with its ratio set afterwards: wrappers pass it on to the press they wrap.

    Raises `UserError` for one that takes none, and what its class raises.
    """
    from kvx.engines.kvpress.adapted import made  # imports kvpress, which a plan does without

    method = config.method
    assert method is not None
    if config.budget_sets is not None:
        method = method | conditions.arguments(config, 1.0 - ratio)
        return made(method)
    press = made(method)
    # not hasattr: some of kvpress's tell their ratio only after a run, and assert before
    if "compression_ratio" not in getattr(press, "__dict__", {}) and not hasattr(
        type(press), "compression_ratio"
    ):
        raise UserError(f"{method['_target_']}: has no compression_ratio, so no budget can be set")
    press.compression_ratio = ratio
    return press


def with_queries(press: Any, queries: Queries) -> Any:
    """`press`, told whose queries it ranks by."""
    vars(press)[_QUERIES] = queries
    return press


def queries_of(press: Any) -> Queries:
    """Whose queries it ranks by: the model's own unless it was told otherwise."""
    found: Queries = getattr(press, "__dict__", {}).get(_QUERIES, Queries.model)
    return found


def runs_alone(point: Point) -> bool:
    """Whether this point's prompts need a forward pass of their own."""
    return bool(ALONE & set(point.config.press.needs)) and point.config.press.method is not None
