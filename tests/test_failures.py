"""Which failure a message or a response is, on what real servers and models say."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.errors import UserError
from kvx.scoring.failure_rules import ANSWER_FORMATS, classify_response
from kvx.scoring.failures import CONTEXT_LENGTH_WORDS, FailureType, classify_error

RATE_LIMITED = FailureType.RATE_LIMITED
CONTEXT = FailureType.CONTEXT_LENGTH_EXCEEDED
TIMEOUT = FailureType.TIMEOUT
ENGINE = FailureType.ENGINE_ERROR


def test_there_are_eight_types_and_each_is_stored_under_its_name() -> None:
    assert len(FailureType) == 8
    assert all(str(failure) == failure.name for failure in FailureType)


# (who says it, status, message)
RATE_LIMIT_MESSAGES = [
    (
        "openai-tpm",
        429,
        "Error code: 429 - {'error': {'message': 'Rate limit reached for gpt-4o in organization "
        "org-X on tokens per min (TPM): Limit 30000, Used 28039, Requested 3906. Please try again "
        "in 3.89s.', 'type': 'tokens', 'param': None, 'code': 'rate_limit_exceeded'}}",
    ),
    (
        "openai-request-too-large-for-the-minute",  # a quota, not the context length
        429,
        "Request too large for gpt-4o in organization org-X on tokens per min (TPM): Limit 30000, "
        "Requested 30601. The input or output tokens must be reduced in order to run successfully.",
    ),
    (
        "openai-quota",
        429,
        "You exceeded your current quota, please check your plan and billing details.",
    ),
    ("status-alone", 429, ""),
    ("client-text-alone", None, "openai.RateLimitError: slow down"),
    ("code-in-text-alone", None, "Error code: 429 - {'detail': 'busy'}"),
    ("nginx", None, "<html><head><title>Too Many Requests</title></head></html>"),
    (
        "groq-413",
        413,
        "Request too large on tokens per minute (TPM): Limit 6000, Requested 10338. Visit "
        "https://console.groq.com/docs/rate-limits for more information.",
    ),
    ("sglang-queue", 503, "The request queue is full."),
    (
        "beats-context-length",
        429,
        "This model's maximum context length is 4096 tokens.",
    ),
]

CONTEXT_MESSAGES = [
    (
        "openai",
        400,
        "Error code: 400 - {'error': {'message': \"This model's maximum context length is 8192 "
        "tokens. However, your messages resulted in 8227 tokens. Please reduce the length of the "
        "messages.\", 'type': 'invalid_request_error', 'param': 'messages', 'code': "
        "'context_length_exceeded'}}",
    ),
    (
        "openai-responses",
        400,
        "Your input exceeds the context window of this model. Please adjust your input and try "
        "again.",
    ),
    (
        "vllm-chat",
        400,
        "This model's maximum context length is 16384 tokens. However, you requested 19591 tokens "
        "(9591 in the messages, 10000 in the completion). Please reduce the length of the messages "
        "or completion.",
    ),
    (
        "vllm-0.11-cap",
        400,
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context "
        "length is 32768 tokens and your request has 29000 input tokens (4096 > 32768 - 29000).",
    ),
    (
        "vllm-0.20",
        400,
        "This model's maximum context length is 128000 tokens. However, you requested 65535 output "
        "tokens and your prompt contains at least 62466 input tokens, for a total of at least "
        "128001 tokens.",
    ),
    (
        "vllm-engine",
        None,
        "ValueError: The decoder prompt (length 5951) is longer than the maximum model length of "
        "4096. Make sure that `max_model_len` is no smaller than the number of text tokens.",
    ),
    (
        "vllm-multimodal",
        None,
        "The prompt (total length 25938) is too long to fit into the model (context length 4096). "
        "Make sure that `max_model_len` is no smaller than the number of text tokens.",
    ),
    ("vllm-0.4", 400, "max_tokens must be at least 1, got -186."),
    (
        "sglang-input",
        400,
        "The input (61709 tokens) is longer than the model's context length (40960 tokens).",
    ),
    (
        "sglang-total",
        400,
        "Requested token count exceeds the model's maximum context length of 64000 tokens. You "
        "requested a total of 71897 tokens: 7897 tokens from the input messages and 64000 tokens "
        "for the completion.",
    ),
    (
        "sglang-memory",
        None,
        "Input length (160062 tokens) exceeds the maximum allowed length (59862 tokens).",
    ),
    (
        "llama.cpp",
        400,
        '{"error":{"code":400,"message":"request (4390 tokens) exceeds the available context size '
        '(4096 tokens), try increasing it","type":"exceed_context_size_error",'
        '"n_prompt_tokens":4390,"n_ctx":4096}}',
    ),
    (
        "llama.cpp-older",
        500,
        "the request exceeds the available context size. try increasing the context size or "
        "enable context shift",
    ),
    ("llama.cpp-while-decoding", 500, "Context size has been exceeded."),
    ("llama-cpp-python", None, "Requested tokens (2285) exceed context window of 2048"),
    (
        "llama.cpp-shift",
        400,
        "input (9739 tokens) is larger than the max context size (8192 tokens). skipping",
    ),
    (
        "vllm-2026",
        400,
        "You passed 8193 input tokens and requested 0 output tokens. However, the model's context "
        "length is only 8192 tokens, resulting in a maximum input length of 8192 tokens. Please "
        "reduce the length of the input prompt. (parameter=input_tokens, value=8193)",
    ),
    (
        "vllm-2026-text",
        400,
        "You passed 412000 input characters and requested 64 output tokens. However, the model's "
        "context length is only 4096 tokens, resulting in a maximum input length of 4032 tokens "
        "(at most 400000 characters). Please reduce the length of the input prompt.",
    ),
    (
        "vllm-2026-output",
        400,
        "max_tokens=5000cannot be greater than max_model_len=max_total_tokens=4096. Please request "
        "fewer output tokens.",
    ),
    ("vllm-0.2", None, "Input prompt (2664 tokens) is too long and exceeds limit of 2048"),
    (
        "tgi-total",
        422,
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 8740 "
        "`inputs` tokens and 500 `max_new_tokens`",
    ),
    (
        "tgi-input",
        422,
        "Input validation error: `inputs` must have less than 1024 tokens. Given: 1168",
    ),
    (
        "gemini",
        400,
        '[{"error": {"code": 400, "message": "The input token count (1200293) exceeds the maximum '
        'number of tokens allowed (1048576).", "status": "INVALID_ARGUMENT"}}]',
    ),
    (
        "lm-studio-0.3.13",
        400,
        "Trying to keep the first 10136 tokens when context the overflows. However, the model is "
        "loaded with context length of only 7866 tokens, which is not enough. Try to load the "
        "model with a larger context length, or provide a shorter input.",
    ),
    (
        "lm-studio-0.3.30",
        400,
        "The number of tokens to keep from the initial prompt is greater than the context length "
        "(n_keep: 10247 >= n_ctx: 4096). Try to load the model with a larger context length, or "
        "provide a shorter prompt.",
    ),
    (
        "lm-studio-while-decoding",
        None,
        "Reached context length of 4096 tokens, but this model does not currently support "
        "mid-generation context overflow.",
    ),
    (
        "tensorrt-llm-pytorch",
        400,
        "The sum of prompt length (50857.0), query length (0) should not exceed max_num_tokens "
        "(32768)",
    ),
    (
        "tensorrt-llm-tensorrt",
        400,
        "The sum of prompt length (4000) and query length (0) max_tokens (2048) should not exceed "
        "max_seq_len (4096)",
    ),
    (
        "tensorrt-llm-no-room",
        400,
        "`default_max_tokens` (-152) must be greater than 0, `default_max_tokens` (-152) = "
        "max_seq_len (8192) - `splited_prompt_len` (8000) - `query_token_len` (344)",
    ),
    (
        "triton-tensorrt-llm",
        500,
        "Encountered an error when fetching new request: Prompt length (5056) exceeds maximum "
        "input length (2048)",
    ),
    (
        "sglang-multimodal",
        400,
        "Input length (265330) exceeds model's maximum context length (64).",
    ),
    ("ollama", 400, "prompt too long; exceeded max context length by 4096 tokens"),
    ("ollama-input", 400, "the input length exceeds the context length"),
    ("anthropic", 400, "prompt is too long: 213462 tokens > 200000 maximum"),
    (
        "anthropic-total",
        400,
        "input length and `max_tokens` exceed context limit: 188059 + 20000 > 200000, decrease "
        "input length or `max_tokens` and try again",
    ),
    (
        "mistral",
        400,
        "Prompt contains 300000 tokens and 0 draft tokens, too large for model with 131072 maximum "
        "context length",
    ),
    (
        "xai",
        400,
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    ),
    ("groq", 400, "Please reduce the length of the messages or completion."),
    ("bedrock", 400, "Input is too long for requested model."),
    ("deepinfra", 400, "Requested input length 39818 exceeds maximum input length 32767"),
    ("kimi", 400, "Your request exceeded model token limit: 262144 (requested: 300000)"),
    ("z.ai", 400, "model_context_window_exceeded"),
    ("minimax", 400, "invalid params, context window exceeds limit"),
    ("anthropic-413", 413, "Request exceeds the maximum size"),
    ("copilot", 400, "prompt token count of 145000 exceeds the limit of 128000"),
    (
        "ds4",
        400,
        "Prompt has 300,000 tokens, but the configured context size is 131,072 tokens",
    ),
    ("dashscope", 400, "Range of input length should be [1, 129024]"),
]

TIMEOUT_MESSAGES = [
    ("openai-client", None, "Request timed out."),
    ("httpx", None, "httpx.ReadTimeout: The read operation timed out"),
    ("python", None, repr(TimeoutError())),
    ("nginx", 504, "<html><head><title>504 Gateway Time-out</title></head></html>"),
    ("status-alone", 504, ""),
    ("request-timeout", 408, "Request Timeout"),
    ("sglang", 503, "Request waiting timeout reached."),
    ("grpc", None, "Deadline Exceeded"),
]

ENGINE_MESSAGES = [
    ("connection", None, "Connection error."),
    ("refused", None, "[Errno 111] Connection refused"),
    (
        "vllm-dead",
        500,
        "EngineCore encountered an issue. See stack trace (above) for the root cause.",
    ),
    ("llama.cpp-loading", 503, '{"error":{"code":503,"message":"Loading model"}}'),
    ("out-of-memory", None, "CUDA out of memory. Tried to allocate 2.00 GiB."),
    ("wrong-key", 401, "Incorrect API key provided: sk-X."),
    ("wrong-model", 404, "The model `gpt-9` does not exist."),
    (
        "output-cap-of-the-model",  # the context is not what is exceeded
        400,
        "max_tokens is too large: 100000. This model supports at most 4096 completion tokens, "
        "whereas you provided 100000.",
    ),
    ("rejected-parameter", 400, "Unrecognized request argument supplied: timeout"),
    ("another-limit", None, "the separate limits of this generate limiter"),
    ("a-number-429", None, "failed after 429 tokens"),
    ("nothing", None, ""),
]


@pytest.mark.parametrize(
    ("message", "status", "failure"),
    [
        pytest.param(message, status, failure, id=f"{failure}-{who}")
        for failure, cases in [
            (RATE_LIMITED, RATE_LIMIT_MESSAGES),
            (CONTEXT, CONTEXT_MESSAGES),
            (TIMEOUT, TIMEOUT_MESSAGES),
            (ENGINE, ENGINE_MESSAGES),
        ]
        for who, status, message in cases
    ],
)
def test_an_error_is_classified_by_what_servers_say(
    message: str, status: int | None, failure: FailureType
) -> None:
    assert classify_error(message, status) is failure


@pytest.mark.parametrize(
    "message", [message for _, status, message in CONTEXT_MESSAGES if status == 400]
)
def test_the_text_is_enough_without_a_status(message: str) -> None:
    assert classify_error(message) is CONTEXT


# responses


@pytest.mark.parametrize("text", ["", " ", "\n\n\t", "\u00a0\u3000"])
def test_whitespace_is_an_empty_output_also_at_the_cap_and_in_any_format(text: str) -> None:
    for reason in ("stop", "length", "content_filter", None):
        for answer_format in (None, *ANSWER_FORMATS):
            assert classify_response(text, reason, answer_format) is FailureType.EMPTY_OUTPUT


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that.",
        "I’m sorry, but I can’t help with that request.",  # typographic apostrophes
        "I'm sorry, I cannot fulfill your request.",
        "Sorry, but I can't provide that.",
        "I am very sorry, but I am unable to continue this conversation.",
        "I apologize, but I cannot write that.",
        "\n I cannot assist with this request.",
        "I can't help with that.",
        "I'm unable to help you with this.",
        "Unfortunately, I cannot comply.",
        "As an AI language model, I cannot give medical advice.",
        "I'm sorry, but as an AI assistant, I can't do that.",
        "**I'm sorry, but I can't** help",
    ],
)
def test_a_refusal_is_recognised_at_the_start(text: str) -> None:
    assert classify_response(text, "stop", None) is FailureType.REFUSAL
    assert classify_response(text, "length", "number") is FailureType.REFUSAL


@pytest.mark.parametrize(
    "text",
    [
        "He says that he cannot assist with the escape.",
        "The king said: I'm sorry, but I can't assist with that.",
        "Because I cannot help you, said the witch.",
        "I can't help falling in love",
        "I cannot tell a lie",
        "I'm sorry for your loss",
        "Sorry seems to be the hardest word",
        "As an AI researcher, she built robots.",
        "Unfortunately, the answer is 9.",
        # the context is lost: compression's damage, not the model's policy
        "I'm sorry, but I can't find that information.",
        "I'm sorry, but I cannot answer this question based on the provided text.",
        "I'm sorry, but I am unable to determine who did it from the story.",
        "As an AI language model, I cannot see a magic number in the text.",
    ],
)
def test_an_answer_that_mentions_cannot_or_sorry_is_no_refusal(text: str) -> None:
    assert classify_response(text, "stop", None) is None


def test_a_response_that_a_content_filter_ended_is_a_refusal() -> None:
    assert classify_response("The way to", "content_filter", None) is FailureType.REFUSAL


def test_a_response_at_the_token_cap_is_truncated_whatever_its_format() -> None:
    assert classify_response("so the answer", "length", None) is FailureType.TRUNCATED
    assert classify_response("so the answer", "length", "number") is FailureType.TRUNCATED
    assert classify_response('{"a": [1, 2', "length", "json") is FailureType.TRUNCATED
    assert classify_response("#### 18", "length", "number") is FailureType.TRUNCATED


def test_every_wording_of_the_table_is_one_that_a_server_uses() -> None:
    messages = [message for *_, message in CONTEXT_MESSAGES]
    unused = [
        pattern
        for pattern in CONTEXT_LENGTH_WORDS
        if not any(re.search(pattern, message, re.IGNORECASE) for message in messages)
    ]
    assert not unused


@pytest.mark.parametrize(
    ("answer_format", "good", "bad"),
    [
        ("number", "so she makes $18 a day", "so she makes money"),
        ("number", r"\boxed{-3}", r"\boxed{x}"),
        ("json", '{"name": "Ada", "born": 1815}', "{'name': 'Ada'}"),
        ("json", '```json\n{"name": "Ada"}\n```', "```json\n{name}\n```"),
        ("json", 'Here it is:\n```json\n["a"]\n``` Done.', "Here it is: none"),
        ("json", "```\n[1]\n```", "```"),
        ("json", "9" * 5000, "[" * 100_000),
        ("yes_no", "Yes, because he said so.", "Perhaps yes"),
        ("yes_no", "**No**", "Nobody knows"),
        ("yes_no", "\n no", "Not at all"),
        ("yes_no", "_YES_", "?!"),
    ],
)
def test_formats(answer_format: str, good: str, bad: str) -> None:
    assert classify_response(good, "stop", answer_format) is None
    assert classify_response(bad, "stop", answer_format) is FailureType.FORMAT_ERROR


def test_without_a_format_any_text_that_ended_by_itself_is_an_answer() -> None:
    assert classify_response("42", "stop", None) is None
    assert classify_response("no idea", None, None) is None


@pytest.mark.parametrize("text", ["", "I cannot assist with that.", "18"])
def test_an_unknown_format_names_field_and_choices_whatever_the_text(text: str) -> None:
    with pytest.raises(UserError) as error:
        classify_response(text, "length", "xml")
    assert str(error.value) == (
        "dataset.answer_format=xml: unknown format; choose from number, json, yes_no, "
        "or null for any text"
    )


@given(st.text(), st.none() | st.integers())
def test_any_message_gets_one_of_the_types_without_a_response(
    message: str, status: int | None
) -> None:
    assert classify_error(message, status) in (RATE_LIMITED, CONTEXT, TIMEOUT, ENGINE)


@given(
    st.text() | st.text('[]{}"`json:,0'),
    st.sampled_from([None, "stop", "length", "abort"]),
    st.sampled_from([None, *ANSWER_FORMATS]),
)
def test_any_text_gets_a_type_or_none(
    text: str, reason: str | None, answer_format: str | None
) -> None:
    failure = classify_response(text, reason, answer_format)
    assert failure not in (RATE_LIMITED, CONTEXT, TIMEOUT, ENGINE)
    assert (failure is FailureType.EMPTY_OUTPUT) == (not text.strip())


@pytest.mark.parametrize(
    "loop", ["[", '{"a":', "```", "```json", "I'm sorry, ", "rate ", "time ", "9,"]
)
@pytest.mark.timeout(600)
def test_a_degenerate_text_does_not_hang_the_classifiers(loop: str) -> None:
    text = loop * (100_000 // len(loop))
    classify_error(text)
    for answer_format in ANSWER_FORMATS:
        classify_response(text, "stop", answer_format)
