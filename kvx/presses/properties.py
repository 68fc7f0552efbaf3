"""What is known of a press without a model, in the words of a table."""

from kvx.config.model_features import ModelFeature
from kvx.config.press_choices import Keeps, PressNeed
from kvx.config.schema import PressConfig
from kvx.presses.coverage import covered, families
from kvx.presses.itself import smallest_kept, smallest_prompt

PROMPTS = (1024, 8192)  # tokens
HEADER = (
    "press", "prefill", "attention", "keeps", "saves memory", "file", "from tokens",
    *(f"from kept of {n:,}" for n in PROMPTS), "families", "needs", "requires", "paper",
)  # fmt: skip

# kvpress's classes that compress what is generated, too
DECODING = (
    "CAMPress", "CompressionRatioDecodingPress", "DecodingPress", "PrefillDecodingPress"
)  # fmt: skip


def properties(press: PressConfig) -> list[str]:
    """A cell for each column of `HEADER`."""
    return [
        press.name,
        _prefill(press),
        _attention(press),
        _keeps(press),
        "yes" if press.saves_memory and PressNeed.masks not in press.needs else "no",
        _file(press),
        f"{least:,}" if (least := smallest_prompt(press)) is not None else "never",
        *(_kept(press, n) for n in PROMPTS),
        f"{len(covered(press))} of {len(families())}",
        _names(press.needs),
        _names(press.requires),
        press.paper or "-",
    ]


def falls_back(press: PressConfig) -> list[tuple[str, str]]:
    """Where a press is not itself, and what it is then."""
    found = []
    if press.degenerate_at_tokens:
        least = press.degenerate_at_tokens
        found.append((f"kept <= {least}", "its window or its sinks take all that is kept"))
    return found + [(rule.when, rule.reason) for rule in press.degenerate_when]


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


def _keeps(press: PressConfig) -> str:
    if press.budget_sets is not None:
        return f"by {', '.join(press.budget_sets)}" if press.budget_sets else "no budget"
    return "as asked" if press.keeps is Keeps.asked else "by its method"


def _file(press: PressConfig) -> str:
    """Where it loads a file from."""
    if not press.hub:
        return "-"
    return "a URL" if "://" in press.hub[0].file else "hub"


def _kept(press: PressConfig, n_tokens: int) -> str:
    least = smallest_kept(press, n_tokens)
    return "never" if least is None else f"{least:,} ({least / n_tokens:.1%})"


def _names(options: "list[PressNeed] | list[ModelFeature]") -> str:
    return ", ".join(option.name for option in options) or "-"
