"""What can go wrong with one attempt, as a failure type and whether to try again."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from kvx.scoring.failures import FailureType, classify_error

LONGEST_MESSAGE = 500
# 409 is a conflict that a later attempt may not meet; 425 asks for one
TRANSIENT_4XX = (408, 409, 425, 429)
EXHAUSTED = "insufficient_quota"  # a 429 that waiting does not cure
NO_PATH = (404, 405, 501)  # also for an unknown model
WRONG_PATH = "Unexpected endpoint"  # LM Studio, with status 200
OTHER_API = {
    "completions": "this server may have no /completions: try engine.api=chat",
    "chat": "this server may have no /chat/completions: try engine.api=completions",
}


class Fault(Exception):  # noqa: N818
    """An attempt without a response; `retry_after_s` is how long the server asks to wait."""

    def __init__(
        self,
        message: str,
        kind: FailureType = FailureType.ENGINE_ERROR,
        transient: bool = True,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.kind, self.transient = message, kind, transient
        self.status, self.retry_after_s = status, retry_after_s

    @property
    def is_push_back(self) -> bool:
        """Whether the server shows that it is overloaded."""
        busy = self.kind in (FailureType.RATE_LIMITED, FailureType.TIMEOUT)
        return busy or self.status in (502, 503)


def of_error(error: openai.APIError) -> Fault:
    """The fault behind an error of the openai client."""
    if isinstance(error, openai.APITimeoutError):
        return Fault("no connection in time", FailureType.TIMEOUT)
    if isinstance(error, openai.APIConnectionError):
        return lost(error.__cause__ or error)
    if not isinstance(error, openai.APIStatusError):
        return _of_status(error.message, None, None)
    text = _said(error)
    fault = _of_status(
        f"HTTP {error.status_code}: {text}", error.status_code, error.response.headers
    )
    if EXHAUSTED in text:
        fault.transient = False
    return fault


def of_object(error: Any) -> Fault:
    """The fault behind an error object in a stream that began with status 200."""
    said, code = error, None
    if isinstance(error, Mapping):
        said, code = error.get("message") or "an error without a message", error.get("code")
    number = str(code)
    status = int(number) if number.isdecimal() and len(number) == 3 else None
    return _of_status(f"{code or ''} {said}".strip(), status, None)


def is_about_model(error: openai.APIStatusError) -> bool:
    """Whether a server that answered 404 lacks the model, not the path."""
    return "model" in _said(error).lower()


def is_wrong_path(said: object) -> bool:
    """Whether an answer with status 200 says that the server has no such path."""
    return isinstance(said, Mapping) and WRONG_PATH in str(said.get("error"))


def lost(error: BaseException) -> Fault:
    """The fault behind what a transport raised."""
    return Fault(f"connection lost ({type(error).__name__}: {error})")


def _of_status(text: str, status: int | None, headers: Mapping[str, str] | None) -> Fault:
    kind = classify_error(text, status)
    refused = status is not None and 400 <= status < 500 and status not in TRANSIENT_4XX
    transient = not refused and kind is not FailureType.CONTEXT_LENGTH_EXCEEDED
    wait_s = None if headers is None else retry_after_s(headers)
    return Fault(text, kind, transient, status, wait_s)


def _said(error: openai.APIStatusError) -> str:
    """The server's own words, with the code it gives."""
    body: Any = error.body
    if isinstance(body, Mapping):
        said, code = body.get("message") or body.get("detail"), body.get("code")
        words = [str(code)] if isinstance(code, str) else []
        if said:
            return " ".join([*words, str(said)])
    text = body if isinstance(body, str) else error.response.text
    return str(text) or error.response.reason_phrase


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds that `Retry-After` (a number or a date) or `retry-after-ms` asks to wait."""
    if (milliseconds := _amount(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None:
        return None
    if (seconds := _amount(value)) is not None:
        return seconds
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _amount(value: str | None) -> float | None:
    """A finite number of at least 0, or None."""
    try:
        number = float(value) if value is not None else math.nan
    except ValueError:
        return None
    return max(0.0, number) if math.isfinite(number) else None


def line(text: str) -> str:
    """One line that every file can hold, cut if it is long."""
    text = " ".join(text.encode(errors="replace").decode().split())
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}…"
