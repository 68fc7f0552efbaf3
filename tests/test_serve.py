"""kvx.serve: the official client, and the same answers and budgets as engine=kvpress in process."""

import asyncio
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, OpenAI

from kvx.cli.command import compose
from kvx.cli.press_files import shipped_presses
from kvx.config.press_choices import PressNeed
from kvx.config.schema import BudgetKind
from kvx.data.prompt import PromptBuilder
from kvx.data.tokenizer import load_tokenizer
from kvx.engines.base import PointWork, Response, seed_of
from tests.presses import RUNNABLE
from tests.serving import Running, serving
from tests.test_engine import answers, make_work, recall

WORDS = " ".join(f"w{i % 7} {i % 90}" for i in range(120))
GREEDY = {"model": "tiny_recall", "temperature": 0}
PRESSES = [
    "none", "snapkv", "streaming", "knorm", "tova", "expected_attention", "observed_attention",
    "keydiff", "random", "pyramidkv", "chunkkv", "criticalkv", "cur", "compactor", "lagkv",
    "snapkv_w16",
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving("model=tiny_recall", "press=snapkv", "budget=0.2") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return server.client()


def proof(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.model_extra["kvx"]
    return found


def asked_of(response: Response, example: Any, chat: bool) -> dict[str, Any]:
    """The arguments of the client that ask for what `response` answers."""
    request = response.request
    config = request.point.config
    builder = PromptBuilder(load_tokenizer(config.model), config)
    compressed, rest = builder.texts(example)
    budget = {"budget": config.budget.ratio}
    if config.budget.kind is BudgetKind.tokens:
        budget = {"budget_tokens": config.budget.tokens or 0}
    kvx = {"press": config.press.name, **budget, "compress_chars": len(compressed)}
    arguments: dict[str, Any] = {
        "model": config.model.name, "max_tokens": config.decoding.max_new_tokens,
        "temperature": config.decoding.temperature, "seed": seed_of(request),
        "extra_body": {"kvx": kvx},
    }  # fmt: skip
    if chat:
        return arguments | {"messages": [{"role": "user", "content": builder.message(example)}]}
    return arguments | {"prompt": compressed + rest}


async def asked_together(url: str, bodies: Sequence[dict[str, Any]]) -> list[Any]:
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        return await asyncio.gather(
            *(
                client.chat.completions.create(**b)
                if "messages" in b
                else client.completions.create(**b)
                for b in bodies
            )
        )


def assert_serves_what_the_engine_answers(work: Sequence[PointWork], *server: str) -> None:
    """Texts, lengths, reasons and KV use of all points' requests, sent at once by both ways."""
    examples = {request.id: example for item in work for request, example in item.requests}
    expected = [(response, examples[response.request.id]) for response in answers(*work)]
    assert len(expected) == len(examples)
    with serving(*server) as running:
        for chat in (False, True):
            bodies = [asked_of(response, example, chat) for response, example in expected]
            got = asyncio.run(asked_together(running.url, bodies))
            for (response, _), answer in zip(expected, got, strict=True):
                choice = answer.choices[0]
                text = choice.message.content if chat else choice.text
                assert text == response.text
                assert choice.finish_reason == response.finish_reason
                assert answer.usage.completion_tokens == len(response.token_ids or ())
                assert answer.usage.prompt_tokens == response.request.entry.prompt_tokens
                assert response.kv is not None
                assert proof(answer)["kv"] == dataclasses.asdict(response.kv)
                assert proof(answer)["press"] == response.request.point.config.press.name


@pytest.mark.parametrize("press", PRESSES)
def test_a_press_serves_what_engine_kvpress_answers(tmp_path: Path, press: str) -> None:
    budgets = ["budget=1.0"] if press == "none" else ["budget=0.5", "budget=0.2"]
    work = [recall(tmp_path, f"press={press}", budget, n=4) for budget in budgets]
    assert_serves_what_the_engine_answers(work, "model=tiny_recall")


def test_a_whole_manifest_at_several_budgets_is_served_as_the_engine_answers_it(
    tmp_path: Path,
) -> None:
    points = [
        ["press=none"], ["press=snapkv", "budget=0.2"], ["press=streaming", "budget=0.5"],
        ["press=snapkv", "budget=tokens", "budget.tokens=100"],
    ]  # fmt: skip
    work = [recall(tmp_path, *overrides) for overrides in points]
    assert_serves_what_the_engine_answers(work, "model=tiny_recall", "serve.max_rows=24")


@pytest.mark.smollm2
def test_a_chat_model_serves_what_the_engine_answers(tmp_path: Path) -> None:
    small = [
        "model=smollm2", "dataset=niah", "dataset.source.n_examples=6", "dataset.binning.n_bins=1",
        "dataset.source.min_words=100", "dataset.source.max_words=300",
        "decoding.max_new_tokens=12",
        "dataset.template.answer_prefix=''",  # a chat cannot begin the answer
    ]  # fmt: skip
    work = [
        make_work(tmp_path, *small, *point, n=2)
        for point in (["press=none"], ["press=snapkv", "budget=0.5"], ["press=knorm", "budget=0.5"])
    ]
    assert_serves_what_the_engine_answers(work, "model=smollm2")


def test_the_list_of_models_says_who_serves(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("tiny_recall", "kvx")
    assert client.models.retrieve("tiny_recall").owned_by == "kvx"
    known = (model.model_extra or {})["kvx"]["presses"]
    alone = {PressNeed.masks, PressNeed.query_in_prompt}
    shared = [p.name for p in shipped_presses() if not alone & set(p.needs)]
    assert known == sorted(set(shared) & {"none", *RUNNABLE})  # not adakv, not finch
    assert set(PRESSES) <= set(known)
    assert "adakv" not in known


def test_a_stream_is_the_answer_in_pieces_and_ends_with_proof_and_usage(client: OpenAI) -> None:
    asked = {**GREEDY, "max_tokens": 12, "prompt": WORDS}
    whole = client.completions.create(**asked)
    chunks = list(
        client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].text for c in chunks[:-1]) == whole.choices[0].text
    assert len([c for c in chunks[:-1] if c.choices[0].text]) == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * 12 + ["length"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert proof(chunks[-1]) == proof(chunks[-2]) == proof(whole)
    assert {c.id for c in chunks} == {chunks[0].id}


def test_a_chat_stream_opens_with_the_role_and_ends_with_proof(client: OpenAI) -> None:
    asked = {**GREEDY, "max_tokens": 6, "messages": [{"role": "user", "content": WORDS}]}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert proof(chunks[-1]) == proof(whole)


def test_the_budget_of_an_answer_is_the_request_s_or_the_server_s(client: OpenAI) -> None:
    def kept(**kvx: Any) -> tuple[Any, Any, float]:
        answer = client.completions.create(
            **GREEDY, prompt=[5] * 201, max_tokens=2, extra_body={"kvx": kvx}
        )
        found = proof(answer)
        assert found["kv"]["entries_physical"] == found["kv"]["entries_effective"]
        return found["press"], found["budget"], found["kv"]["entries_physical"]

    assert kept() == ("snapkv", 0.2, 39)  # kvpress rounds int(200 * (1 - 0.8))
    assert kept(budget=0.5) == ("snapkv", 0.5, 100)
    assert kept(press="knorm") == ("knorm", 0.2, 39)
    assert kept(press="none") == ("none", 1.0, 200)
    assert kept(budget_tokens=70) == ("snapkv", 70, 70)
    assert kept(press="streaming", budget=0.25) == ("streaming", 0.25, 50)


def test_a_prompt_of_token_ids_is_taken_as_it_is(client: OpenAI) -> None:
    tokenizer = load_tokenizer(compose("model=tiny_recall").model)
    ids = tokenizer.encode("<bos>" + WORDS, add_special_tokens=False)
    texts = [
        client.completions.create(**GREEDY, prompt=prompt, max_tokens=8).choices[0].text
        for prompt in (ids, [ids], WORDS, "<bos>" + WORDS, [WORDS])
    ]
    assert len(set(texts)) == 1


def test_a_stop_string_ends_the_answer_before_it(client: OpenAI) -> None:
    asked = {**GREEDY, "prompt": WORDS, "max_tokens": 16, "extra_body": {"ignore_eos": True}}
    full = client.completions.create(**asked)
    text = full.choices[0].text
    stop = text[5:11]  # across tokens
    for stops in (stop, [stop, "never"]):
        cut = client.completions.create(**asked, stop=stops)
        assert cut.choices[0].text == text[: text.index(stop)]
        assert cut.choices[0].finish_reason == "stop"
        assert cut.usage.completion_tokens < full.usage.completion_tokens
        chunks = list(client.completions.create(**asked, stop=stops, stream=True))
        assert "".join(c.choices[0].text for c in chunks) == cut.choices[0].text


def test_logprobs_are_the_model_s_and_the_greedy_token_is_the_likeliest(client: OpenAI) -> None:
    asked = {**GREEDY, "max_tokens": 6, "extra_body": {"ignore_eos": True}}
    messages = [{"role": "user", "content": WORDS}]
    chat = client.chat.completions.create(
        **asked, messages=messages, logprobs=True, top_logprobs=20
    )
    content = chat.choices[0].logprobs.content
    assert len(content) == 6
    for token in content:
        assert len(token.top_logprobs) == 20
        assert token.top_logprobs[0].token == token.token
        assert token.top_logprobs[0].logprob == token.logprob <= 0
        values = [t.logprob for t in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert bytes(token.bytes).decode() == token.token
    plain = client.completions.create(**asked, prompt=WORDS, logprobs=3)
    shown = plain.choices[0].logprobs
    assert len(shown.tokens) == len(shown.token_logprobs) == len(shown.top_logprobs) == 6
    for token, logprob, top in zip(
        shown.tokens, shown.token_logprobs, shown.top_logprobs, strict=True
    ):
        assert top[token] == logprob == max(top.values())
        assert 3 <= len(top) <= 4
    streamed = client.completions.create(**asked, prompt=WORDS, logprobs=3, stream=True)
    chunks = [c.choices[0].logprobs for c in streamed if c.choices[0].logprobs is not None]
    assert [t for c in chunks for t in c.tokens] == shown.tokens
    assert [t for c in chunks for t in c.text_offset] == shown.text_offset


def test_a_seed_gives_the_same_answer_in_company(server: Running) -> None:
    def body(seed: int, **more: Any) -> dict[str, Any]:
        return {"model": "tiny_recall", "prompt": WORDS, "temperature": 1.5, "seed": seed,
                "max_tokens": 24, "extra_body": {"ignore_eos": True}, **more}  # fmt: skip

    seeds = [7, 8, 9, 10]
    alone = {
        seed: asyncio.run(asked_together(server.url, [body(seed)]))[0].choices[0].text
        for seed in seeds
    }
    assert len(set(alone.values())) == len(seeds)
    company = [
        body(100 + i, temperature=0.5 + i / 8, top_p=0.9, prompt=WORDS[20 * i :], max_tokens=9 + i)
        for i in range(8)
    ]
    bodies = [body(seed) for seed in seeds] + company + [body(1, temperature=0)]
    together = asyncio.run(asked_together(server.url, bodies))
    assert [a.choices[0].text for a in together[:4]] == [alone[seed] for seed in seeds]
    unseeded = [body(0) | {"seed": None} for _ in range(8)]
    texts = {a.choices[0].text for a in asyncio.run(asked_together(server.url, unseeded))}
    assert len(texts) > 4  # two may agree by chance


def test_all_presses_budgets_and_lengths_together_answer_as_alone(server: Running) -> None:
    bodies = []
    for i, press in enumerate(PRESSES * 2):
        budget = 1.0 if press == "none" else (0.3, 0.7)[i >= len(PRESSES)]
        kvx = {"press": press, "budget": budget}
        bodies.append(
            {**GREEDY, "prompt": WORDS[-(500 + 17 * i) :], "max_tokens": 5 + i, "seed": i,
             "extra_body": {"kvx": kvx, "ignore_eos": i % 2 == 0}}
        )  # fmt: skip
    alone = [asyncio.run(asked_together(server.url, [b]))[0] for b in bodies]
    together = asyncio.run(asked_together(server.url, bodies))
    for one, other in zip(alone, together, strict=True):
        assert one.choices[0].text == other.choices[0].text
        assert proof(one) == proof(other)
        assert one.usage == other.usage
