"""Structured configuration of kvx.serve."""

from dataclasses import dataclass


@dataclass
class ServeConfig:
    """The OpenAI-compatible server."""

    host: str = "127.0.0.1"
    port: int = 8000
    # null: KVX_API_KEY of the environment, read by the server alone
    api_key: str | None = None
    # prompts that may wait for a row; more are answered 429
    queue: int = 256
    # rows decoded together
    max_rows: int = 64
    # prompt and answer together, in tokens; null: the model's limit
    max_context: int | None = None
    max_request_bytes: int = 4 << 20
    # how long running answers may go on after the server was told to stop
    drain_s: float = 10.0
