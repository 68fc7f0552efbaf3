"""Stop strings: wherever a row is decoded, its text ends before the first of them."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Kvx

from kvx.cli.command import compose
from kvx.config.identity import resolved
from kvx.engines.base import LatencyWork, Measurement, Response
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.errors import UserError
from kvx.guard.live import Change
from kvx.store.shards import write_table
from kvx.text.incremental import StopTokens, StopWatch, first_stop
from tests.test_engine import answers, make_work
from tests.test_guard_live import KNORM, SMALL, STEERED, generate
from tests.test_serve_text import TOKENIZERS

PLAIN = tuple(o for o in SMALL if not o.startswith("prompt."))


def words(response: Response) -> list[str]:
    assert response.text is not None
    return response.text.split()


def cut(response: Response, stops: list[str]) -> tuple[str | None, str | None]:
    """Text and finish reason that are right for what was said without stop strings."""
    assert response.text is not None
    at = first_stop(response.text, stops)
    if at is None:
        return response.text, response.finish_reason
    return response.text[:at], "stop"


def asked(stops: list[str]) -> str:
    return f"decoding.until=[{','.join(repr(stop) for stop in stops)}]"


@pytest.mark.parametrize(
    "overrides",
    [("press=none",), ("press=knorm", "budget=0.5"), ("press=adakv", "budget=0.5"),
     ("press=knorm", "budget=0.5", "engine.share=false")],
    ids=["full", "shared", "masked", "alone"],
)  # fmt: skip
def test_a_row_ends_before_its_first_stop_string(
    tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    free = answers(make_work(tmp_path, *PLAIN, *overrides))
    # of the longest answer two words that follow each other, of another a word
    longest, other = sorted((words(r) for r in free), key=len)[:-3:-1]
    middle = len(longest) // 2
    stops = [" ".join(longest[middle : middle + 2]), other[len(other) // 2]]
    bound = answers(make_work(tmp_path, *PLAIN, *overrides, asked(stops)))
    assert len(bound) == len(free)
    ended = 0
    for before, after in zip(_sorted(free), _sorted(bound), strict=True):
        assert (after.text, after.finish_reason) == cut(before, stops)
        assert before.token_ids is not None
        assert after.token_ids is not None
        n = len(after.token_ids)
        assert after.token_ids == before.token_ids[:n]
        assert n == len(before.token_ids) or after.text != before.text
        assert after.trace is not None
        assert len(after.trace.logprob) == n
        ended += after.text != before.text
    assert ended >= 2


def _sorted(responses: list[Response]) -> list[Response]:
    return sorted(responses, key=lambda r: r.request.entry.example_id)


def test_a_latency_is_that_of_the_shorter_answer(tmp_path: Path) -> None:
    point = ("press=none",)
    free = max(answers(make_work(tmp_path, *PLAIN, *point)), key=lambda r: len(words(r)))
    work = make_work(tmp_path, *PLAIN, *point, asked([words(free)[1]]))
    item = next(pair for pair in work.requests if pair[0].entry == free.request.entry)
    (measured,) = KVPressEngine(work.point.config).measure([LatencyWork(work.point, ((*item, 0),))])
    assert isinstance(measured, Measurement)
    assert measured.output_tokens is not None
    assert free.token_ids is not None
    assert measured.output_tokens < len(free.token_ids)


@pytest.mark.parametrize("n_kept", [0, 1, 4])
def test_a_rollback_over_a_stop_string_takes_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_kept: int
) -> None:
    (plain,) = generate(tmp_path, [KNORM], monkeypatch)
    assert plain[0].token_ids is not None
    tokenizer = KVPressEngine(plain[0].request.point.config).loaded.tokenizer
    stop = words(plain[0])[5]
    watch = StopWatch(tokenizer, [stop])
    at = next(i for i, token in enumerate(plain[0].token_ids, 1) if watch.push(token))
    script = {1: {at: Change(1.0, n_kept, "roll_back", "hazard")}}
    _, free = generate(tmp_path, [KNORM, STEERED], monkeypatch, script)
    until = (asked([stop]),)
    bound, steered = generate(tmp_path, [(*KNORM, *until), (*STEERED, *until)], monkeypatch, script)
    assert (bound[0].text, bound[0].finish_reason) == cut(plain[0], [stop])
    for before, after in zip(free, steered, strict=True):
        assert before.guard is not None
        if before.guard.events:
            assert (after.text, after.finish_reason) == cut(before, [stop])
    assert steered[0].guard is not None
    assert [event.action for event in steered[0].guard.events] == ["roll_back"]


@pytest.mark.parametrize(
    ("kind", "ids", "stop"),
    [
        ("byte_level", list("wé want\nQuestion: x".encode()), "\nQ"),
        ("byte_fallback", [256, 257, 258, 0xC3, 0xA9, 256, 257], "cats"),
        ("cleaned_words", [10, 11, 1, 2, 8, 10, 1, 2, 4], "do"),
    ],
)
def test_a_watch_that_was_rewound_sees_what_a_new_one_sees(
    kind: str, ids: list[int], stop: str
) -> None:
    tokenizer, stops = TOKENIZERS[kind](), [stop]
    watch = StopWatch(tokenizer, stops)
    for token in ids:
        watch.push(token)
    assert watch.found
    watch.rewind(1)
    assert not watch.found
    new = StopWatch(tokenizer, stops)
    new.push(ids[0])
    for token in ids[1:]:
        assert watch.push(token) == new.push(token)
    assert watch.found


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
def test_tokens_that_end_no_stop_string_are_passed_over_and_nothing_is_seen_later(
    kind: str,
) -> None:
    tokenizer, draw = TOKENIZERS[kind](), random.Random(7)
    for _ in range(40):
        ids = [draw.randrange(len(tokenizer)) for _ in range(90)]
        if kind.startswith("byte"):
            ids = list("".join(draw.choices("ab é\n漢.", k=60)).encode())
        text = tokenizer.decode(ids, skip_special_tokens=True)
        begin = draw.randrange(max(1, len(text)))
        stops = [text[begin : begin + draw.randrange(1, 6)] or "x", "no such"]
        every = StopTokens(tokenizer, stops)
        every.may_end = lambda token: True  # type: ignore[method-assign]
        lazy, eager = StopWatch(tokenizer, stops), StopWatch(tokenizer, stops, every)
        for at, token in enumerate(ids):
            assert lazy.push(token) == eager.push(token), (stops, at, ids)
            if at % 20 == 19:
                back = draw.randrange(at)
                lazy.rewind(back)
                eager.rewind(back)
                assert lazy.found == eager.found
                for again in ids[back : at + 1]:
                    assert lazy.push(again) == eager.push(again)


def test_a_watch_reads_a_token_once() -> None:
    """Decoding a window for each token of each row took longer than the step itself."""
    tokenizer, stops = TOKENIZERS["byte_level"](), ["\nQ"]
    tokens, decode = StopTokens(tokenizer, stops), tokenizer.decode
    read: list[Any] = []

    def reading(ids: Any, **more: Any) -> Any:
        read.append(ids)
        return decode(ids, **more)

    tokenizer.decode = reading
    for _ in range(3):
        watch = StopWatch(tokenizer, stops, tokens)
        for token in b"abc" * 100:
            assert not watch.push(token)
    assert len(read) == 3


def test_no_stop_string_changes_no_id(tmp_path: Path) -> None:
    config = compose("decoding.until=[]")
    assert "until" not in resolved(config.decoding)
    assert "until" not in resolved(config.dataset)
    bound, free = (make_work(tmp_path, *PLAIN, *more, n=1).point for more in ((asked(["x"]),), ()))
    assert bound.id != free.id
    assert bound.manifest.key == free.manifest.key


def test_the_datasets_stop_strings_are_taken_over_and_typed_as_in_yaml() -> None:
    assert compose("dataset=gsm8k_fewshot").decoding.until == ["\nQuestion:"]
    assert compose("dataset=gsm8k_fewshot", "decoding.until=[]").decoding.until == []
    assert compose(r'decoding.until=["\n\nQ:",b]').decoding.until == ["\n\nQ:", "b"]
    with pytest.raises(UserError, match=r"decoding.until=abc: must be a list, such as \[a,b\]"):
        compose("decoding.until=abc")
    for field in ("decoding", "dataset", "score"):
        with pytest.raises(UserError, match="until: holds an empty text"):
            compose(f"{field}.until=['']")


# scoring what was run without


RUN = ("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=2", "dataset.binning.n_bins=1")


def rewritten(text: str, finish_reason: str = "length", **columns: Any) -> Path:
    """The answers of the only point, with this text; as an older kvx left them."""
    (path,) = Path("outputs/runs/default/points").glob("*/requests.parquet")
    table = pq.read_table(path)
    rows = [{**row, "text": text, "finish_reason": finish_reason} for row in table.to_pylist()]
    names = [n for n in table.schema.names if n not in ("reasoning", "opens_reasoning")]
    old = pa.schema([table.schema.field(n) for n in names])
    write_table(path, [{n: row[n] for n in names} for row in rows], old, "")
    return path.parent


def scored(folder: Path, name: str) -> Any:
    return pq.read_table(folder / f"{name}.parquet").to_pandas()


def test_answers_that_were_made_without_are_cut_when_they_are_scored(kvx: Kvx) -> None:
    assert kvx("run", *RUN).code == 0
    text = "a b\nQuestion: " + "la " * 99
    folder = rewritten(text)
    assert kvx("score").code == 0
    assert scored(folder, "catastrophes")["cap_reached"].all()
    assert set(scored(folder, "failures")["error_type"]) == {"TRUNCATED"}
    outcome = kvx("score", r'score.until=["\nQuestion:"]')
    assert outcome.code == 0, outcome.err
    assert "1 points scored" in outcome.err
    assert set(scored(folder, "scores")["prediction_normalized"]) == {"b"}  # "a" is an article
    assert len(scored(folder, "failures")) == 0
    seen = scored(folder, "catastrophes")
    assert not seen["cap_reached"].any()
    assert not seen["looping"].any()
    assert set(seen["unit"]) == {"word"}
    assert set(scored(folder, "requests")["text"]) == {text}


def test_a_point_that_decoded_without_is_judged_with_its_datasets(kvx: Kvx) -> None:
    assert kvx("run", *RUN, r'dataset.until=["\nQuestion:"]', "decoding.until=[]").code == 0
    folder = rewritten("b\nQuestion: c")
    assert kvx("score").code == 0
    assert set(scored(folder, "scores")["prediction_normalized"]) == {"b"}
