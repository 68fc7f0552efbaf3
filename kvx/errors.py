"""How a command can end early; `kvx.cli.command` makes one line and an exit code of each."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping
from functools import cache
from pathlib import Path


class UserError(Exception):
    """A wrong request (exit 2).

    Its message is one line: what is wrong, in which field or file, and what to do.
    """


class NotApplicableError(UserError):
    """Points whose press cannot be used on their model or with their server.

    `reasons` says why, by the point's directory. A sweep goes on without them.
    """

    def __init__(self, message: str, reasons: Mapping[Path, str]) -> None:
        super().__init__(message, reasons)  # both: it is pickled on its way from a worker
        self.reasons = dict(reasons)

    def __str__(self) -> str:
        return str(self.args[0])


class ArgumentError(UserError, ValueError):
    """A wrong argument of a function that users of the library call."""


EXTRAS = {  # what an extra of kvx installs, by the name that is imported
    "fastapi": "serve", "starlette": "serve", "uvicorn": "serve", "prometheus_client": "serve",
    "openai": "openai", "anyio": "openai", "aiolimiter": "openai", "tenacity": "openai",
    "dotenv": "openai", "submitit": "slurm", "xgboost": "guard", "jieba": "longbench",
    "rouge": "longbench",
}  # fmt: skip


def of_extra(error: BaseException) -> str | None:
    """How to install a missing module, in one line; None if no extra of kvx contains it."""
    name = (getattr(error, "name", None) or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or name not in EXTRAS:
        return None
    return f"{name} is not installed; pip install 'kvx[{EXTRAS[name]}]'"


def require(*names: str) -> None:
    """Raises `ModuleNotFoundError` for the first that is not installed; imports none of them."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


class RunFailedError(Exception):
    """The request was right but some of the work failed (exit 1); what could be done is done."""

    exit_code = 1


class UnfinishedError(RunFailedError):
    """The experiment is not finished (exit 3); nothing went wrong."""

    exit_code = 3


class Submitted(Exception):  # noqa: N818
    """The work was handed to a queue and continues there (exit 0); says how to watch it."""


def first_line(error: BaseException) -> str:
    """The first line of its message, or its type where it has none."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else type(error).__name__


def unreadable(path: object, error: Exception) -> UserError:
    """Why a file cannot be read, in one line."""
    if isinstance(error, IsADirectoryError):
        return UserError(f"{path}: is a directory; name a file")
    reason = (str(error).splitlines() or [""])[0] or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror.lower()
    if isinstance(error, UnicodeDecodeError):
        reason = f"byte {error.start} is not UTF-8; save it as UTF-8"
    return UserError(f"{path}: cannot be read ({reason})")


def show_traceback(error: BaseException, of: object) -> None:
    """With HYDRA_FULL_ERROR=1, print where an error was raised that is reported in one line.

    The same traceback is shown once for each `of`: a press that raises does so in every request.
    """
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        _print_once("".join(traceback.format_exception(error)), id(of))


@cache
def _print_once(text: str, _: int) -> None:
    print(text, file=sys.stderr)


def shown(value: object) -> str:
    """`value` as it stands in such a line: its repr if that is short, else its type."""
    text = repr(value)
    short = len(text) <= 60 and "\n" not in text
    return text if short else f"({type(value).__name__})"
