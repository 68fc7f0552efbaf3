"""engine=openai against a server whose faults are real: failure types, retries and counts."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fault_server import KEY, OK, FaultServer, answer_to, prompt_of, serving

from kvx.cli.command import compose
from kvx.config.schema import Config
from kvx.engines.base import PointWork, Response
from kvx.engines.openai import session
from kvx.engines.openai.client import HIDDEN
from kvx.engines.openai.engine import OpenAIEngine
from kvx.engines.openai.fault import LONGEST_MESSAGE, retry_after_s
from kvx.run.planning import plan
from kvx.run.work import answers_work
from kvx.scoring.failure_rules import classify_response
from kvx.scoring.failures import FailureType
from kvx.store.layout import Present

RETRIES = 2
FAST = (
    f"engine.max_retries={RETRIES}", "engine.probe=false", "dataset.binning.n_bins=1",
    "dataset.sampling.n_per_bin=3", "dataset.source.n_examples=20",
)  # fmt: skip
# for faults that are about time; others and good answers may take as long as they like
IMPATIENT = ("engine.timeouts.first_token_s=0.5", "engine.timeouts.between_tokens_s=0.5")
PATIENT = ("engine.timeouts.first_token_s=5", "engine.timeouts.between_tokens_s=5")
STALLING = ("engine.timeouts.first_token_s=60", "engine.timeouts.between_tokens_s=0.5")
SLOW = ("slow_first", "stall")
ERROR, LIMITED = FailureType.ENGINE_ERROR, FailureType.RATE_LIMITED
TIMEOUT, CONTEXT = FailureType.TIMEOUT, FailureType.CONTEXT_LENGTH_EXCEEDED
# the fault, its type, whether it is worth another attempt, and words of its message
FAULTS = [
    ("429", LIMITED, True, "Rate limit reached"),
    ("429_after", LIMITED, True, "HTTP 429"),
    ("quota", LIMITED, False, "insufficient_quota"),
    ("500", ERROR, True, "the engine tripped"),
    ("503", ERROR, True, "upstream is away"),
    ("slow_first", TIMEOUT, True, "no token within 0.5 s"),
    ("stall", TIMEOUT, True, "no token for 0.5 s"),
    ("reset", ERROR, True, "connection lost"),
    ("cut", ERROR, True, "ended before it was finished"),
    ("malformed", ERROR, True, "not JSON"),
    ("wrong_schema", ERROR, True, "wrong schema"),
    ("empty_choices", ERROR, True, "no choices"),
    ("error_in_stream", ERROR, True, "CUDA out of memory"),
    ("context", CONTEXT, False, "maximum context length"),
    ("wrong_model", ERROR, False, "model_not_found"),
    ("expired_key", ERROR, False, "Incorrect API key"),
]  # fmt: skip
WHOLE = [  # the same without a stream
    ("malformed_body", ERROR, True, "not JSON"),
    ("not_json", ERROR, True, "not JSON"),
    ("wrong_schema", ERROR, True, "wrong schema"),
    ("empty_choices", ERROR, True, "no choices"),
    ("500", ERROR, True, "the engine tripped"),
]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(session, "FIRST_BACKOFF_S", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def config_for(server: FaultServer, *overrides: str) -> Config:
    return compose("engine=openai", f"engine.base_url={server.url}", *FAST, *overrides)


def responses(server: FaultServer, *overrides: str) -> list[Response]:
    return responses_to([config_for(server, *overrides)])


def responses_to(configs: list[Config]) -> list[Response]:
    points = plan(configs)
    work = [PointWork(p, answers_work(p, Present(set(), set())).requests) for p in points]
    items = list(OpenAIEngine(configs[0]).generate(work))
    assert all(isinstance(item, Response) for item in items)
    found = [item for item in items if isinstance(item, Response)]
    asked = [request.id for item in work for request, _ in item.requests]
    assert sorted(r.request.id for r in found) == sorted(asked)  # none lost, none twice
    return found


@pytest.mark.parametrize("api", ["completions", "chat"])
@pytest.mark.parametrize(("fault", "kind", "transient", "words"), FAULTS)
def test_a_fault_that_stays_is_typed_with_the_servers_words(
    fault: str, kind: FailureType, transient: bool, words: str, api: str
) -> None:
    with serving(FaultServer(lambda n, body: fault)) as server:
        impatient = {"slow_first": IMPATIENT, "stall": STALLING}.get(fault, ())
        found = responses(server, f"engine.api={api}", *impatient)
        attempts = 1 + RETRIES if transient else 1
        assert len(server.bodies) == len(found) * attempts
        for response in found:
            assert response.error_type == kind
            assert words in (response.error_message or "")
            assert response.text is None
            assert not response.budget_verified
            assert KEY not in (response.error_message or "")


@pytest.mark.parametrize(("fault", "kind", "transient", "words"), WHOLE)
def test_the_same_without_a_stream(
    fault: str, kind: FailureType, transient: bool, words: str
) -> None:
    with serving(FaultServer(lambda n, body: fault)) as server:
        found = responses(server, "engine.stream=false")
        assert len(server.bodies) == len(found) * (1 + RETRIES)
        assert {r.error_type for r in found} == {kind.value}
        assert all(words in (r.error_message or "") for r in found)


@pytest.mark.parametrize("fault", [name for name, _, transient, _ in FAULTS if transient])
def test_a_fault_that_passes_is_not_seen_in_the_answers(fault: str) -> None:
    with serving(FaultServer(lambda n, body: fault if n == 1 else OK)) as server:
        # good answers must not be taken for slow ones
        found = responses(server, *(PATIENT if fault in SLOW else ()))
        assert len(server.bodies) == len(found) + 1
        texts = {r.text for r in found}
        assert texts == {answer_to(prompt_of(body)) + " " for body in server.bodies}
        assert all(r.error_type is None for r in found)
        assert set(server.answered.values()) == {1}


def test_refusal_and_length_are_responses() -> None:
    with serving(FaultServer(lambda n, body: ["refusal", "length", "empty"][n % 3])) as server:
        found = responses(server, "engine.api=chat")
        kinds = Counter(classify_response(r.text or "", r.finish_reason, None) for r in found)
        assert kinds == {FailureType.REFUSAL: 1, FailureType.TRUNCATED: 1, "EMPTY_OUTPUT": 1}
        assert all(r.has_response for r in found)
        assert len(server.bodies) == 3


def test_retry_after_is_honoured() -> None:
    plan_ = lambda n, body: "429_after" if n == 0 else OK  # noqa: E731
    with serving(FaultServer(plan_, retry_after="0.8")) as server:
        responses(server, "dataset.sampling.n_per_bin=1")
        assert len(server.times) == 2
        assert server.times[1] - server.times[0] >= 0.8


def test_to_come_back_at_once_is_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "FIRST_BACKOFF_S", 0.4)
    plan_ = lambda n, body: "429_after" if n == 0 else OK  # noqa: E731
    with serving(FaultServer(plan_, retry_after="0")) as server:
        responses(server, "dataset.sampling.n_per_bin=1")
        assert server.times[1] - server.times[0] >= 0.2


def test_a_wait_that_is_too_long_is_a_refusal() -> None:
    with serving(FaultServer(lambda n, body: "429_after", retry_after="3600")) as server:
        found = responses(server)
        assert len(server.bodies) == len(found)
        assert {r.error_type for r in found} == {"RATE_LIMITED"}


def test_decoding_timeout_ends_a_request_without_another_attempt() -> None:
    with serving(FaultServer(lambda n, body: "slow_first")) as server:
        found = responses(server, "decoding.timeout_s=0.3", "engine.timeouts.first_token_s=60")
        assert len(server.bodies) == len(found)
        assert {r.error_message for r in found} == {"stopped after 0.3 s"}


def test_each_point_has_its_own_timeout() -> None:
    with serving(FaultServer(lambda n, body: "slow_first")) as server:
        times = ("decoding.timeout_s=0.3", "decoding.timeout_s=30")
        limits = ("engine.max_retries=0", "engine.timeouts.first_token_s=4")
        found = responses_to([config_for(server, t, *limits) for t in times])
        said = Counter(
            (r.error_message or "").removesuffix(" (the last of 1 attempts)") for r in found
        )
        assert said == {"stopped after 0.3 s": 3, "no token within 4 s": 3}


def test_a_server_without_logprobs_still_answers(caplog: pytest.LogCaptureFixture) -> None:
    with serving(FaultServer(refuses_logprobs=True)) as server:
        found = responses(server, "engine.max_retries=0")
        assert all(r.has_response and r.trace is None for r in found)
        assert "logprobs" not in server.bodies[-1]
        assert caplog.text.count("refuses these log-probs") == 1


def test_the_key_is_hidden_in_what_a_server_repeats() -> None:
    with serving(FaultServer(lambda n, body: "expired_key")) as server:
        assert all(HIDDEN in (r.error_message or "") for r in responses(server))


def test_half_a_key_is_not_shown_where_a_message_is_cut() -> None:
    def far(n: int, body: dict[str, Any]) -> str:
        return "expired_key"

    with serving(FaultServer(far, before_key="x" * (LONGEST_MESSAGE - 60))) as server:
        for response in responses(server):
            assert (response.error_message or "").endswith("…")
            assert "sk-" not in (response.error_message or "")


def test_retry_after_in_all_its_forms() -> None:
    assert retry_after_s({"retry-after": "2"}) == 2
    assert retry_after_s({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after_s({"retry-after-ms": "0", "retry-after": "9"}) == 0
    assert retry_after_s({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    far = retry_after_s({"retry-after": "Wed, 21 Oct 2099 07:28:00 GMT"})
    assert far is not None
    assert far > 1e9
    assert retry_after_s({"retry-after": "-3"}) == 0
    for nonsense in ("soon", "nan", "inf", ""):
        assert retry_after_s({"retry-after": nonsense}) is None
        assert retry_after_s({"retry-after-ms": nonsense}) is None
    assert retry_after_s({}) is None


@pytest.fixture
def busy() -> Iterator[Any]:
    with serving(FaultServer(capacity=6, delay_s=0.02)) as server:
        yield server


def test_concurrency_finds_the_servers_capacity(busy: FaultServer) -> None:
    n = 300
    found = responses(
        busy, f"dataset.sampling.n_per_bin={n}", f"dataset.source.n_examples={n}",
        "dataset.source.max_words=250", "engine.max_retries=10",
    )  # fmt: skip
    assert all(r.has_response for r in found)
    assert busy.most_in_flight > 4  # it grew from where it starts
    refused = len(busy.bodies) - n
    assert refused < n / 4  # and did not stay above what the server takes


def test_fixed_concurrency_is_kept() -> None:
    with serving(FaultServer(delay_s=0.05)) as server:
        responses(server, "dataset.sampling.n_per_bin=12", "engine.concurrency=3")
        assert server.most_in_flight == 3


def test_requests_per_minute_are_kept() -> None:
    with serving(FaultServer()) as server:
        responses(server, "dataset.sampling.n_per_bin=6", "engine.rate_limit.max_rpm=600")
        gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
        assert min(gaps) > 0.05
        assert sum(gaps) >= 0.5 - 0.02
