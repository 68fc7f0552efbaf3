"""The text of one answer: grown token by token, sent in pieces, and taken back."""

from dataclasses import dataclass
from typing import Any

from kvx.text.incremental import StopStrings, TokenText


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability under the model (before temperature and cuts)."""

    token_id: int
    logprob: float


@dataclass(frozen=True)
class ScoredToken:
    """A chosen token and the likeliest ones at its place, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Piece:
    """Text that can be shown, and the tokens chosen since the last piece, if asked for."""

    text: str
    scored: tuple[ScoredToken, ...] = ()


@dataclass(frozen=True)
class Restart:
    """What was sent after so many tokens or characters (code points) is taken back."""

    kept_tokens: int
    kept_characters: int


@dataclass(frozen=True)
class _Mark:
    """The state of text and stop strings after a token, and the characters until then."""

    text: Any
    stops: Any
    characters: int


class Transcript:
    """The text of a growing answer, shown as far as its owner says.

    With `rewindable` it can go back to any of its tokens.
    """

    def __init__(self, text: TokenText, stops: StopStrings, rewindable: bool = False) -> None:
        self.text, self.stops = text, stops
        self.shown_tokens = 0
        self._pieces: list[Piece] = []  # of the tokens that are not shown yet
        self._characters = 0  # of all tokens so far
        self._shown_characters = 0
        self._scored = False
        self._marks = [self._mark()] if rewindable else None
        self._back: Restart | None = (
            None  # shown tokens were taken back and the client is not told yet
        )

    @property
    def n_tokens(self) -> int:
        """How many were pushed."""
        return self.text.n_tokens

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the answer."""
        return self.stops.found

    def push(self, token: int, scored: tuple[ScoredToken, ...] = ()) -> None:
        text = self.stops.push(self.text.push(token))
        self._pieces.append(Piece(text, scored))
        self._characters += len(text)
        self._scored = self._scored or bool(scored)
        if self._marks is not None:
            self._marks.append(self._mark())

    def rewind(self, n_tokens: int) -> None:
        """Keep only the first `n_tokens`, even if more were shown."""
        if n_tokens >= self.n_tokens:
            return
        assert self._marks is not None
        mark = self._marks[n_tokens]
        del self._marks[n_tokens + 1 :]
        self.text.rewind(mark.text)
        self.stops.rewind(mark.stops)
        self._characters = mark.characters
        if n_tokens < self.shown_tokens:
            if self._scored or self._shown_characters > mark.characters:
                self._back = Restart(n_tokens, mark.characters)
            self.shown_tokens, self._shown_characters = n_tokens, mark.characters
            self._pieces = []
        del self._pieces[n_tokens - self.shown_tokens :]

    def show(self, n_tokens: int) -> list[Piece | Restart]:
        """The text of the first `n_tokens` that was not shown before, if any."""
        said: list[Piece | Restart] = [] if self._back is None else [self._back]
        self._back = None
        n = n_tokens - self.shown_tokens
        if n > 0:
            some, self._pieces = self._pieces[:n], self._pieces[n:]
            self.shown_tokens += len(some)
            text = "".join(piece.text for piece in some)
            scored = tuple(token for piece in some for token in piece.scored)
            self._shown_characters += len(text)
            if text or scored:
                said.append(Piece(text, scored))
        return said

    def close(self) -> list[Piece | Restart]:
        """The answer has ended: everything not shown yet."""
        said = self.show(self.n_tokens)
        if not self.stopped and (text := self.stops.push(self.text.rest()) + self.stops.rest()):
            said.append(Piece(text))
        return said

    def _mark(self) -> _Mark:
        return _Mark(self.text.mark(), self.stops.mark(), self._characters)
