"""How many tokens texts have: many at a time, and each text once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, TypeVar

T = TypeVar("T")

BATCH_CHARS = 2_000_000  # enough for every thread of the tokenizer, and little memory
PROBE_CHARS = 2_000


@dataclass(frozen=True)
class Count:
    """Tokens of a text, and the highest id among them (-1 for none)."""

    n_tokens: int
    highest_id: int


class TokenCounter:
    """Counts tokens as `tokenizer.encode(text, add_special_tokens=False)` makes them.

    A fast tokenizer's own `encode_batch_fast` is used, which takes several threads and computes no
    offsets; another tokenizer encodes one text after the other. Counts are remembered by content.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._encode_batch: Callable[..., list[Any]] | None = None
        self._probed = False
        self._known: dict[bytes, Count] = {}

    def __call__(self, texts: Sequence[str]) -> list[Count]:
        """The count of each text."""
        keys = [_key(text) for text in texts]
        new = {k: t for k, t in zip(keys, texts, strict=True) if k not in self._known}
        if new:
            self._known.update(zip(new, self._counted(list(new.values())), strict=True))
        return [self._known[key] for key in keys]

    def one(self, text: str) -> Count:
        return self([text])[0]

    def _counted(self, texts: list[str]) -> list[Count]:
        if not self._probed:
            self._encode_batch, self._probed = self._usable(texts[0][:PROBE_CHARS]), True
        if self._encode_batch is None:
            ids = (self.tokenizer.encode(t, add_special_tokens=False) for t in texts)
            return [_count(found) for found in ids]
        encoded = self._encode_batch(texts, add_special_tokens=False)
        return [_count(found.ids) for found in encoded]

    def _usable(self, text: str) -> Callable[..., list[Any]] | None:
        """The backend's `encode_batch_fast`, if there is one and it gives the same ids."""
        wanted = self.tokenizer.encode(text, add_special_tokens=False)  # also resets padding
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        encode: Callable[..., list[Any]] | None = getattr(backend, "encode_batch_fast", None)
        if encode is None:
            return None
        (found,) = encode([text], add_special_tokens=False)
        return encode if found.ids == list(wanted) else None


@lru_cache(maxsize=8)
def counter_of(tokenizer: Any) -> TokenCounter:
    """The one counter of a tokenizer: what a source counted is not counted again."""
    return TokenCounter(tokenizer)


def batches(items: Iterable[T], size: Any, limit: int = BATCH_CHARS) -> Iterator[list[T]]:
    """`items` in lists whose sizes, by `size(item)`, sum to little more than `limit`."""
    batch: list[T] = []
    total = 0
    for item in items:
        batch.append(item)
        total += size(item)
        if total >= limit:
            yield batch
            batch, total = [], 0
    if batch:
        yield batch


def _key(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _count(ids: Sequence[int]) -> Count:
    return Count(len(ids), max(ids, default=-1))
