"""Single tokens as the API shows them with their log-probabilities."""

import re
from functools import cache
from typing import Any

from kvx.serve.transcript import ScoredToken, TokenLogprob

Json = dict[str, Any]


@cache
def _byte_of() -> dict[str, int]:
    """The bytes that byte-level tokenizers (GPT-2 and its kin) write as printable characters."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def token_bytes(tokenizer: Any, token_id: int) -> bytes:
    """The bytes a token stands for, also where they are only part of a character."""
    text = token_text(tokenizer, token_id)
    if "\ufffd" not in text:
        return text.encode()
    piece = str(tokenizer.convert_ids_to_tokens(token_id))
    if found := re.fullmatch(r"<0x([0-9A-F]{2})>", piece):
        return bytes([int(found[1], 16)])
    table = _byte_of()
    return bytes(table[c] for c in piece) if all(c in table for c in piece) else text.encode()


def token_text(tokenizer: Any, token_id: int) -> str:
    """A token alone, with the space before it that decoding leaves out at the start of a text."""
    text = str(tokenizer.decode([token_id], skip_special_tokens=False))
    piece = tokenizer.convert_ids_to_tokens(token_id)
    spaced = piece is not None and piece.startswith("▁") and not text.startswith(" ")
    return " " + text if spaced else text


def chat_logprobs(tokenizer: Any, scored: tuple[ScoredToken, ...]) -> Json:
    def entry(token: TokenLogprob) -> Json:
        return {
            "token": token_text(tokenizer, token.token_id),
            "logprob": token.logprob,
            "bytes": list(token_bytes(tokenizer, token.token_id)),
        }

    return {
        "content": [{**entry(s.chosen), "top_logprobs": [entry(t) for t in s.top]} for s in scored],
        "refusal": None,
    }


def completion_logprobs(tokenizer: Any, scored: tuple[ScoredToken, ...], offset: int) -> Json:
    """`offset` is how many characters of tokens came before."""
    tokens = [token_text(tokenizer, s.chosen.token_id) for s in scored]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [s.chosen.logprob for s in scored],
        "top_logprobs": [
            {token_text(tokenizer, t.token_id): t.logprob for t in (s.chosen, *reversed(s.top))}
            for s in scored
        ],
        "text_offset": offsets,
    }
