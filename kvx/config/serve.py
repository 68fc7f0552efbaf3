"""Structured configuration of kvx.serve."""

from dataclasses import dataclass

from kvx.config.ranges import within


@dataclass
class ServeConfig:
    """The OpenAI-compatible server."""

    host: str = "127.0.0.1"
    port: int = within(8000, at_least=0, at_most=65535)
    # null: KVX_API_KEY of the environment, read by the server alone
    api_key: str | None = None
    # prompts that may wait for a row; more are answered 429
    queue: int = within(256, at_least=1)
    # rows decoded together
    max_rows: int = within(64, at_least=1)
    # prompt and answer together, in tokens; null: the model's limit
    max_context: int | None = within(None, at_least=2)
    max_request_bytes: int = within(4 << 20, at_least=1024)
    # how long running answers may go on after the server was told to stop
    drain_s: float = within(10.0, at_least=0, at_most=3600)
