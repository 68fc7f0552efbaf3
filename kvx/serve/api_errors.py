"""Reasons to refuse a request, as the API's error object."""

from dataclasses import dataclass
from typing import Any


@dataclass
class ApiError(Exception):
    """An answer with `status` and the API's error object; `param` names the field at fault."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None

    @property
    def kind(self) -> str:
        if self.status == 429:
            return "rate_limit_error"
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """An invalid request (400)."""
    return ApiError(400, message, param, code)


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down")
