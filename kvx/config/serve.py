"""Structured configuration of kvx.serve."""

from dataclasses import dataclass

from kvx.config.fields import option


@dataclass
class ServeConfig:
    """The OpenAI-compatible server."""

    host: str = option("127.0.0.1", "address to listen on; any other needs an API key")
    port: int = option(8000, "0: any free one", at_least=0, at_most=65535)
    api_key: str | None = option(
        None,
        "clients send it as a bearer token; better in the environment as KVX_API_KEY, which null "
        "reads",
    )
    queue: int = option(
        256, "prompts that may wait for a row; more are told to come back later (429)", at_least=1
    )
    max_rows: int = option(64, "requests decoded together", at_least=1)
    max_context: int | None = option(
        None, "prompt and answer together, in tokens; null: the model's limit", at_least=2
    )
    max_request_bytes: int = option(4 << 20, "size of a request's body", at_least=1024)
    drain_s: float = option(
        10.0,
        "how long running answers may go on after the server was told to stop",
        at_least=0,
        at_most=3600,
    )
