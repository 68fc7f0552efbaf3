"""From which prompt and budget on a press is the method that its name says, by its YAML."""

from kvx.config import conditions
from kvx.config.schema import PressConfig

LONGEST = 1 << 14  # prompts that are tried, in tokens
SHARES = (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


def degenerate(press: PressConfig, n_tokens: int, kept: int) -> str | None:
    """What `press` is for a prompt of which it is asked to keep so many; None if it is itself."""
    if kept <= press.degenerate_at_tokens:
        return f"needs more than {press.degenerate_at_tokens}"
    return conditions.reason(press, n_tokens, kept + 0.5, kept)


def smallest_prompt(press: PressConfig) -> int | None:
    """Tokens of the shortest prompt that it is itself for at any budget; None if there is none."""
    for n in range(press.min_prompt_tokens + 1, LONGEST):
        tried = {max(1, min(n - 1, int(n * share))) for share in SHARES} - {n}
        if any(degenerate(press, n, kept) is None for kept in tried):
            return n
    return None


def smallest_kept(press: PressConfig, n_tokens: int) -> int | None:
    """The fewest of a prompt's entries that it has to keep to be itself; None if never."""
    if n_tokens <= press.min_prompt_tokens:
        return None
    every = range(1, n_tokens)
    return next((kept for kept in every if degenerate(press, n_tokens, kept) is None), None)
