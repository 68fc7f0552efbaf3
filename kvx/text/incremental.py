"""From tokens to text that can be shown at once: whole characters, and never a stop string."""

from collections.abc import Sequence
from typing import Any

# tokens that are decoded anew for each token, and how many stay when the window moves on
WINDOW, CONTEXT = 64, 16
# transformers' clean-up looks at so many characters at once (" n't")
CLEAN_UP_REACH = 3
INCOMPLETE = "\ufffd"  # an incomplete character decodes to this


class TokenText:
    """The text of a growing token sequence, as soon as later tokens cannot change it.

    `tokenizers.decoders.DecodeStream` cannot be copied, so it cannot rewind; it needs a fast
    tokenizer and knows nothing of transformers' clean-up.

    All that `push` and `rest` return, joined, is what the tokenizer decodes the sequence to,
    without special tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # of the window
        self._given = 0  # characters of the window's text
        self._cleaned = _cleans_up(tokenizer)

    def push(self, *tokens: int) -> str:
        """What becomes certain with `tokens`; may be empty."""
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
        """How many were pushed."""
        return len(self._ids)

    @property
    def token_ids(self) -> list[int]:
        """Those that were pushed."""
        return list(self._ids)

    def mark(self) -> tuple[int, int, int]:
        """Where it is now, for `rewind`."""
        return len(self._ids), self._start, self._given

    def rewind(self, mark: tuple[int, int, int]) -> None:
        """Go back to where it was when it gave this mark."""
        n_tokens, self._start, self._given = mark
        del self._ids[n_tokens:]

    def rest(self) -> str:
        """What was held back; the sequence has ended."""
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
    """Where the first of `stops` that is complete begins in `text`; None if there is none.

    The first as if the text came character by character: "bc" ends before "abcd" does.
    """
    ends = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return min(ends)[1] if ends else None


class StopStrings:
    """Cuts text before the first of `stops` that is complete; holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.found = False
        self._held = ""

    def push(self, text: str) -> str:
        """What can be shown of the text so far; nothing more after a stop string was found."""
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
        """Where it is now, for `rewind`."""
        return self.found, self._held

    def rewind(self, mark: tuple[bool, str]) -> None:
        """Go back to where it was when it gave this mark."""
        self.found, self._held = mark

    def rest(self) -> str:
        """What was held back; the text has ended."""
        held, self._held = self._held, ""
        return held


class StopTokens:
    """Tells tokens that may complete one of `stops`, so that others need not be decoded.

    Such a token's own text holds the last character of a stop string, or a part of a character.
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
    """Sees stop strings in a growing token sequence, which may be taken back and go on.

    `found` is whether the text of the tokens so far holds one. Its end may be seen some tokens
    late, where the tokenizer's clean-up holds characters back: whoever shows the text cuts it.
    Watches of the same `stops` share what is known of tokens.
    """

    def __init__(
        self, tokenizer: Any, stops: Sequence[str], tokens: StopTokens | None = None
    ) -> None:
        self._text, self._stops = TokenText(tokenizer), StopStrings(stops)
        self._tokens = tokens or StopTokens(tokenizer, stops)
        self._ids: list[int] = []
        self._marks = [self._mark()]  # wherever text was made of the tokens

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
        """Only the first `n_tokens` are left."""
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
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


def _cleans_up(tokenizer: Any) -> bool:
    return bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
