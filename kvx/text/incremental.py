"""From tokens to text that can be sent at once: whole characters, and no stop string."""

from collections.abc import Sequence
from typing import Any

WINDOW = 64  # tokens that are decoded again for each new token
CONTEXT = 16  # tokens that stay when the window moves on
CLEAN_UP_REACH = 3  # characters that transformers' clean-up looks at together (" n't")
INCOMPLETE = "\ufffd"  # an incomplete character decodes to this


class TokenText:
    """The text of a growing token sequence, as soon as later tokens cannot change it.

    The texts that `push` and `rest` return, joined, are the decoded sequence without special
    tokens. `tokenizers.decoders.DecodeStream` cannot do this: it cannot rewind, needs a fast
    tokenizer and ignores transformers' clean-up.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # of the window
        self._given = 0  # characters of the window's text
        self._cleaned = _cleans_up(tokenizer)

    def push(self, *tokens: int) -> str:
        """The text that becomes certain with `tokens`; may be empty."""
        self._ids += tokens
        window = self._decode(self._start)
        certain = window.rstrip(INCOMPLETE)
        if self._cleaned:
            certain = certain[:-CLEAN_UP_REACH]
        new = certain[self._given :]
        self._given += len(new)
        if len(self._ids) - self._start > WINDOW:
            self._move(window)
        return new

    @property
    def n_tokens(self) -> int:
        """How many tokens were pushed."""
        return len(self._ids)

    @property
    def token_ids(self) -> list[int]:
        """The tokens that were pushed."""
        return list(self._ids)

    def mark(self) -> tuple[int, int, int]:
        """The present state, for `rewind`."""
        return len(self._ids), self._start, self._given

    def rewind(self, mark: tuple[int, int, int]) -> None:
        """Go back to the state of this mark."""
        n_tokens, self._start, self._given = mark
        del self._ids[n_tokens:]

    def rest(self) -> str:
        """The text that was held back; the sequence has ended."""
        new = self._decode(self._start)[self._given :]
        self._given += len(new)
        return new

    def _move(self, window: str) -> None:
        start = len(self._ids) - CONTEXT
        context = self._decode(start)
        given = len(context) - (len(window) - self._given)
        if given > 0 and window.endswith(context):  # else a character is split there: next time
            self._start, self._given = start, given

    def _decode(self, start: int) -> str:
        return str(self.tokenizer.decode(self._ids[start:], skip_special_tokens=True))


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first complete one of `stops` begins in `text`; None if there is none.

    The first is the one that ends first: "bc" ends before "abcd" does.
    """
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(ends)[1] if ends else None


class StopStrings:
    """Cuts text before the first complete one of `stops`; holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.found = False
        self._held = ""

    def push(self, text: str) -> str:
        """The text that can be sent now; nothing after a stop string was found."""
        if self.found:
            return ""
        text = self._held + text
        at = first_stop(text, self.stops)
        if at is not None:
            self.found, self._held = True, ""
            return text[:at]
        shown = len(text) - max((_overlap(text, stop) for stop in self.stops), default=0)
        self._held = text[shown:]
        return text[:shown]

    def mark(self) -> tuple[bool, str]:
        """The present state, for `rewind`."""
        return self.found, self._held

    def rewind(self, mark: tuple[bool, str]) -> None:
        """Go back to the state of this mark."""
        self.found, self._held = mark

    def rest(self) -> str:
        """The text that was held back; the text has ended."""
        held, self._held = self._held, ""
        return held


class StopTokens:
    """Recognises tokens that may complete one of `stops`, so that others need no decoding.

    Such a token's own text has the last character of a stop string, or a part of a character.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        last = {stop[-1] for stop in stops if stop}
        # a token's own text may lack its leading space; clean-up shows characters late
        self._all = not last.isdisjoint({" ", INCOMPLETE}) or _cleans_up(tokenizer)
        self._last = last | {INCOMPLETE}
        self._known: dict[int, bool] = {}

    def may_end(self, token: int) -> bool:
        if self._all:
            return True
        if token not in self._known:
            text = str(self._tokenizer.decode([token], skip_special_tokens=True))
            self._known[token] = not self._last.isdisjoint(text)
        return self._known[token]


class StopWatch:
    """Detects stop strings in a growing token sequence that may be rewound.

    `found`: whether the text of the tokens so far has one. Where the tokenizer's clean-up holds
    characters back, the end is detected some tokens late, so whoever sends the text must cut it.
    Watches of the same `stops` share their `tokens`.
    """

    def __init__(
        self, tokenizer: Any, stops: Sequence[str], tokens: StopTokens | None = None
    ) -> None:
        self._text, self._stops = TokenText(tokenizer), StopStrings(stops)
        self._tokens = tokens or StopTokens(tokenizer, stops)
        self._ids: list[int] = []
        self._marks = [self._mark()]  # one for each time that tokens were decoded

    @property
    def found(self) -> bool:
        return self._stops.found

    def push(self, token: int) -> bool:
        """Whether a stop string is complete with `token`."""
        self._ids.append(token)
        if not self.found and self._tokens.may_end(token):
            self._stops.push(self._text.push(*self._ids[self._text.n_tokens :]))
            self._marks.append(self._mark())
        return self.found

    def rewind(self, n_tokens: int) -> None:
        """Keep only the first `n_tokens`."""
        del self._ids[n_tokens:]
        if n_tokens >= self._text.n_tokens:
            return
        while self._marks[-1][0][0] > n_tokens:
            self._marks.pop()
        text, stops = self._marks[-1]
        self._text.rewind(text)
        self._stops.rewind(stops)

    def _mark(self) -> tuple[tuple[int, int, int], tuple[bool, str]]:
        return self._text.mark(), self._stops.mark()


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in sizes if text.endswith(stop[:n])), 0)


def _cleans_up(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
