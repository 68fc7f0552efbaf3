"""What is known of a press without a model, in the words of a table."""

from kvx.config.model_features import ModelFeature
from kvx.config.press_choices import Keeps, PressNeed
from kvx.config.schema import PressConfig

HEADER = ("press", "prefill", "attention", "keeps", "prompt tokens from", "needs", "requires")


def properties(press: PressConfig) -> list[str]:
    """A cell for each column of `HEADER`."""
    return [
        press.name,
        _prefill(press),
        _attention(press),
        "as asked" if press.keeps is Keeps.asked else "by its method",
        str(press.min_prompt_tokens + 1),
        _names(press.needs),
        _names(press.requires),
    ]


def _prefill(press: PressConfig) -> str:
    """Whether a point runs its prompts with other points', or alone."""
    if PressNeed.masks in press.needs or PressNeed.changes_forward in press.needs:
        return "alone"
    return "shared"


def _attention(press: PressConfig) -> str:
    """The attention implementation of transformers that it works with."""
    if PressNeed.attention_weights in press.needs:
        return "eager"
    return "not eager" if PressNeed.masks in press.needs else "any"


def _names(options: "list[PressNeed] | list[ModelFeature]") -> str:
    return ", ".join(option.name for option in options) or "-"
