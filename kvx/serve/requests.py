"""The requests that the server understands. A field that it would ignore is refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kvx.data.chat import RESERVED

LARGEST = 2**63 - 1

Stop = Annotated[str, Field(min_length=1, max_length=1024)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Compression(Strict):
    """`"kvx"` in the body (`extra_body` of the client); what is left out is the server's own.

    `compress_chars` is how many characters (code points) at the start of the prompt, or of the
    rendered chat, are the compressed context; the rest is forwarded after compression.
    `controller` is the server's own, or none.
    """

    press: str | None = Field(default=None, max_length=100)
    budget: float | None = Field(default=None, gt=0, le=1)
    budget_tokens: int | None = Field(default=None, ge=1, le=LARGEST)
    compress_chars: int | None = Field(default=None, ge=1, le=LARGEST)
    controller: str | None = Field(default=None, max_length=100)

    @model_validator(mode="after")
    def _one_budget(self) -> "Compression":
        if self.budget is not None and self.budget_tokens is not None:
            raise ValueError("give budget or budget_tokens, not both")
        return self

    @property
    def names_a_budget(self) -> bool:
        """Whether the request names its own compression."""
        return any(v is not None for v in (self.press, self.budget, self.budget_tokens))


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class Generation(Strict):
    """The fields of both endpoints."""

    model: str = Field(max_length=1000)
    max_tokens: int | None = Field(default=None, ge=1, le=LARGEST)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=LARGEST)
    seed: int | None = Field(default=None, ge=-(2**63), le=LARGEST)
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    kvx: Compression = Field(default_factory=Compression)

    n: Literal[1] | None = None
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None

    # these do not change what is generated
    user: str | None = None
    metadata: dict[str, str] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def tokens_asked(self) -> int | None:
        return self.max_tokens

    @property
    def logprobs_asked(self) -> int | None:
        """How many alternatives to each chosen token; None for no log-probabilities."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _options_of_a_stream(self) -> "Generation":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is for stream=true")
        return self


class CompletionRequest(Generation):
    """POST /v1/completions"""

    prompt: (
        str
        | list[Annotated[int, Field(ge=0, le=LARGEST)]]
        | Annotated[list[str], Field(min_length=1, max_length=1)]
        | Annotated[list[list[Annotated[int, Field(ge=0, le=LARGEST)]]], Field(max_length=1)]
    )
    logprobs: int | None = Field(default=None, ge=0, le=20)

    @property
    def one_prompt(self) -> str | list[int]:
        """Without the list that may be around it."""
        match self.prompt:
            case [str() | list() as only]:
                return only
            case text_or_ids:
                return text_or_ids  # type: ignore[return-value]

    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None

    @property
    def logprobs_asked(self) -> int | None:
        return self.logprobs


class TextPart(Strict):
    type: Literal["text"]
    text: str


class Message(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ResponseFormat(Strict):
    type: Literal["text"]


class ChatRequest(Generation):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=LARGEST)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    # arguments of the chat template, as in vLLM's server; they override the server's own
    chat_template_kwargs: dict[str, Any] | None = None

    @field_validator("chat_template_kwargs")
    @classmethod
    def _for_a_template(cls, asked: dict[str, Any] | None) -> dict[str, Any] | None:
        if reserved := [name for name in asked or {} if name in RESERVED]:
            raise ValueError(f"{reserved[0]} cannot be set for a chat template")
        return asked

    @property
    def tokens_asked(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @property
    def logprobs_asked(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @model_validator(mode="after")
    def _logprobs_first(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self
