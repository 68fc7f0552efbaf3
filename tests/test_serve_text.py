"""What a stream shows: whole characters, no part of a stop string, in all what decoding gives."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from kvx.cli.command import compose
from kvx.data.tokenizer import load_tokenizer
from kvx.serve.tokens import token_bytes
from kvx.text.incremental import CLEAN_UP_REACH, WINDOW, StopStrings, TokenText


def byte_level() -> Any:
    """Every byte is a token, as in the worst case of GPT-2's kin."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    names = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    tokenizer = Tokenizer(models.BPE({names[b]: b for b in range(256)}, []))
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_fallback() -> Any:
    """Words with their space, and single bytes for all else, as in Llama 2."""
    words = ["▁the", "▁cat", "s", "é", "▁"]
    names = [f"<0x{b:02X}>" for b in range(256)] + words
    tokenizer = Tokenizer(models.BPE({n: i for i, n in enumerate(names)}, []))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def cleaned_words() -> Any:
    """Whole words, and transformers' clean-up of the spaces between them, as in BERT."""
    words = ["[UNK]", "do", "n't", ".", ",", "'", "s", "'s", "?", "##ing", "we", "'re", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}))
    tokenizer.decoder = decoders.WordPiece()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=True, sep_token="[SEP]"
    )


def recall() -> Any:
    return load_tokenizer(compose("model=tiny_recall").model)


TOKENIZERS = {
    "byte_level": byte_level, "byte_fallback": byte_fallback, "cleaned_words": cleaned_words,
    "recall": recall,
}  # fmt: skip


def streamed(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    text = TokenText(tokenizer)
    return [*(text.push(i) for i in ids), text.rest()]


@pytest.mark.parametrize("kind", ["byte_level", "cleaned_words", "recall"])
def test_a_stream_is_the_decoded_text_in_pieces(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()

    @given(st.lists(st.integers(0, len(tokenizer) - 1), max_size=300))
    def holds(ids: list[int]) -> None:
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)

    holds()


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_a_stream_of_bytes_is_text_in_whole_characters(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()

    @given(st.text(max_size=120))
    def holds(text: str) -> None:
        ids = list(text.encode())
        pieces = streamed(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)

    holds()


@pytest.mark.smollm2
def test_a_stream_of_smollm2_is_the_decoded_text() -> None:
    tokenizer = load_tokenizer(compose("model=smollm2").model)

    @given(st.lists(st.integers(0, len(tokenizer) - 1), max_size=150))
    def holds(ids: list[int]) -> None:
        assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)

    holds()


def test_a_character_comes_with_its_last_byte_and_not_before() -> None:
    pieces = streamed(byte_level(), list("aé漢👍b".encode()))
    assert [p for p in pieces if p] == ["a", "é", "漢", "👍", "b"]
    assert pieces[1:3] == ["", "é"]


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_a_long_answer_is_not_decoded_from_its_beginning_for_each_token(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    words = {"cleaned_words": [1, 2, 3, 10, 11, 9], "recall": [5, 9, 40, 50]}
    text, longest = TokenText(tokenizer), 0
    decode = text._decode

    def counted(start: int) -> str:
        nonlocal longest
        longest = max(longest, text.n_tokens - start)
        return decode(start)

    text._decode = counted  # type: ignore[method-assign]
    for i in range(1000):
        some = words.get(kind, [65, 66])
        text.push(some[i % len(some)])
    assert longest <= 2 * WINDOW


def test_clean_up_reaches_no_further_than_is_held_back() -> None:
    patterns = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
    assert max(map(len, patterns)) - 1 <= CLEAN_UP_REACH


def first_complete(text: str, stops: Sequence[str]) -> str:
    """What a reader who takes one character after the other has seen when a stop string ends."""
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)]
    return text


@given(
    st.lists(st.text("ab", max_size=5), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
)
def test_text_is_cut_at_the_first_stop_string_however_it_comes(
    pieces: list[str], stops: list[str]
) -> None:
    cutter = StopStrings(stops)
    shown = [cutter.push(p) for p in pieces]
    shown.append(cutter.rest())
    text = "".join(pieces)
    assert "".join(shown) == first_complete(text, stops)
    assert cutter.found == any(s in text for s in stops)
    for n in range(len(shown)):  # nothing of a stop string was shown in between
        assert text.startswith("".join(shown[:n]))


def test_what_cannot_become_a_stop_string_is_shown_at_once() -> None:
    cutter = StopStrings(["END", "."])
    assert [cutter.push(p) for p in ("go", "oE", "Nx", "E", "ND", "more")] == [
        "go", "o", "ENx", "", "", "",
    ]  # fmt: skip
    assert cutter.found


def test_bytes_of_a_token_that_is_part_of_a_character() -> None:
    smile = "👍".encode()
    assert b"".join(token_bytes(byte_level(), b) for b in smile) == smile
    assert b"".join(token_bytes(byte_fallback(), b) for b in smile) == smile
    words = byte_fallback()
    assert token_bytes(words, words.convert_tokens_to_ids("▁cat")) == b" cat"
