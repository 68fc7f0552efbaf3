"""The eight ways in which a request yields no answer."""

from enum import StrEnum


class FailureType(StrEnum):
    """Failures are counted beside accuracy, never inside it (see `kvx.score.failures` for the rules)."""

    RATE_LIMITED = "RATE_LIMITED"
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    TIMEOUT = "TIMEOUT"
    ENGINE_ERROR = "ENGINE_ERROR"
    EMPTY_OUTPUT = "EMPTY_OUTPUT"
    TRUNCATED = "TRUNCATED"
    REFUSAL = "REFUSAL"
    FORMAT_ERROR = "FORMAT_ERROR"
