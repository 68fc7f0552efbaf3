"""What servers may send, right or wrong: an answer that can be stored, or a typed fault."""

import json
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kvx.cli.command import compose
from kvx.config.engine import Api
from kvx.engines.base import Response
from kvx.engines.openai.fault import Fault, line
from kvx.engines.openai.reply import Parser, Reply
from kvx.engines.openai.sse import Events
from kvx.points import Request
from kvx.run.planning import plan
from kvx.store import schemas
from kvx.store.records import request_row, trace_row

NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.just(10**400)
TEXTS = st.text(st.characters(codec=None), max_size=4) | st.sampled_from(["\ud83d", "\ude00", ""])
JSON = st.recursive(
    NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.integers(0, 30).flatmap(lambda i: JSON if i == 0 else good)


def fields(**values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return mostly(st.fixed_dictionaries({}, optional={k: mostly(v) for k, v in values.items()}))


LOGPROB = st.floats(max_value=0)
TOKEN = fields(
    token=TEXTS, logprob=LOGPROB, top_logprobs=st.lists(fields(logprob=LOGPROB), max_size=3)
)
CHAT = fields(content=mostly(st.lists(TOKEN, max_size=2)))
COMPLETION = fields(
    tokens=st.lists(TEXTS, max_size=2), token_logprobs=st.lists(LOGPROB, max_size=2),
    top_logprobs=st.lists(st.dictionaries(TEXTS, LOGPROB, max_size=3), max_size=2),
)  # fmt: skip
CHOICE = st.fixed_dictionaries(
    {
        "text": mostly(TEXTS),
        "delta": fields(content=TEXTS, refusal=TEXTS),
        "logprobs": mostly(CHAT | COMPLETION | st.none()),
        "finish_reason": mostly(st.sampled_from(["stop", "length", None])),
    }
)
NAMES = (
    "entries_nominal", "entries_effective", "entries_physical", "bytes_nominal",
    "bytes_effective", "bytes_physical", "bytes_full", "bytes_peak",
)  # fmt: skip
KVX = st.fixed_dictionaries(
    {
        "press": mostly(TEXTS),
        "budget": mostly(st.floats(0, 1)),
        "budget_kind": mostly(TEXTS),
        "kv": st.fixed_dictionaries({name: mostly(st.integers(0, 99)) for name in NAMES}),
    }
)
PART = st.fixed_dictionaries(
    {"choices": mostly(st.lists(CHOICE, max_size=2))},
    optional={
        "usage": fields(completion_tokens=st.integers()),
        "kvx": KVX,
        "error": mostly(st.none()),
    },
)


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> Request:
    folder = tmp_path_factory.mktemp("replies")
    overrides = (
        "engine=openai", "engine.base_url=http://127.0.0.1:1/v1", f"paths.output={folder}",
        "dataset.source.n_examples=20", "dataset.sampling.n_per_bin=1",
    )  # fmt: skip
    (point,) = plan([compose(*overrides)])
    return Request(point, point.manifest.entries[0])


def stored(request: Request, reply: Reply) -> None:
    """Raises what writing the reply's rows would raise."""
    said = reply.accounting
    response = Response(
        request, reply.text, output_tokens=reply.output_tokens, finish_reason=reply.finish_reason,
        timing=reply.timing, kv=None if said is None else said.kv, trace=reply.trace, machine="x",
    )  # fmt: skip
    row = request_row(response, datetime.now(UTC))
    pa.Table.from_pylist([row], schema=schemas.REQUESTS)
    if (trace := trace_row(response)) is not None:
        pa.Table.from_pylist([trace], schema=schemas.TRACES)


@pytest.mark.parametrize("api", list(Api))
def test_whatever_a_server_sends_is_an_answer_that_can_be_stored_or_a_fault(
    request_: Request, api: Api
) -> None:
    answers = []

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(PART, min_size=1, max_size=3))
    @example([{"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": False}}])
    def holds(parts: list[Any]) -> None:
        parser = Parser(api)
        try:
            for part in parts:
                parser.feed(json.loads(json.dumps(part)), 0.1)
            reply = parser.finish(0.2, streamed=True)
        except Fault as fault:
            line(fault.message).encode()
            return
        stored(request_, reply)
        answers.append(reply)

    holds()
    assert len(answers) > 40


def test_a_character_in_two_parts_is_one_and_half_of_one_is_marked() -> None:
    parser = Parser(Api.completions)
    for text in ("a\ud83d", "\ude00", "b\ud83d"):
        parser.feed({"choices": [{"text": text, "finish_reason": "stop"}]}, 0.1)
    assert parser.finish(0.2, streamed=True).text == "a😀b\ufffd"


def test_an_error_object_with_status_200_is_that_error() -> None:
    with pytest.raises(Fault, match="429 slow down") as caught:
        Parser(Api.chat).feed({"error": {"message": "slow down", "code": 429}}, 0.1)
    assert caught.value.kind == "RATE_LIMITED"
    with pytest.raises(Fault, match="out of luck"):
        Parser(Api.chat).feed({"error": "out of luck"}, 0.1)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3), max_size=6),
    st.lists(st.integers(1, 40), max_size=30),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([None, 1]),
)
def test_events_are_the_same_wherever_the_network_cuts_them(
    values: list[Any], cuts: list[int], end: str, indent: int | None
) -> None:
    def event(text: str) -> str:
        return "".join(f"data: {row}{end}" for row in text.split("\n")) + end

    sent = f": hello{end}{end}event: x{end}"
    sent += "".join(event(json.dumps(v, ensure_ascii=False, indent=indent)) for v in values)
    sent += event("[DONE]") + event("not read any more")
    stream, events, found = sent.encode(), Events(), []
    for size in [*cuts, len(stream)]:
        if not events.done:
            found += list(events.feed(stream[:size]))
        stream = stream[size:]
    assert found == values
    assert events.done


def test_an_event_that_is_no_json_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expecting"):
        list(Events().feed(b"data: {]\n\n"))
