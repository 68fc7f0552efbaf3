"""The server's address, key and model name: from the environment, else from `.env` here.

Only names that are meant for a client of OpenAI's API, or for kvx: many tools set `BASE_URL` for
purposes of their own, and prompts and key would go there. `.env` is this project's own file, so
names of its older form still hold in it.
"""

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)
BASE_URL, MODEL_NAME, API_KEY = "OPENAI_BASE_URL", "KVX_MODEL_NAME", "OPENAI_API_KEY"
# the same by another name; the first that is there holds
ALSO = {BASE_URL: ("KVX_BASE_URL",)}
OLD = {BASE_URL: "BASE_URL", MODEL_NAME: "MODEL_NAME"}  # in `.env` only
FILE = Path(".env")
_told: set[str] = set()


def read(name: str) -> str | None:
    """The variable's value; the environment wins over `.env`. None if neither has it."""
    names = (*ALSO.get(name, ()), name)
    found = next((value for n in names if (value := _clean(os.environ.get(n)))), None)
    if found is not None:
        return found
    if not FILE.is_file():
        return None
    from dotenv import dotenv_values

    file = dotenv_values(FILE)
    found = next((value for n in names if (value := _clean(file.get(n)))), None)
    old = OLD.get(name)
    if found is None and old is not None and (found := _clean(file.get(old))) is not None:
        _tell(f"{FILE}: {old} is the older name of {name}; rename it")
    return found


def unread(name: str) -> str:
    """A hint if the environment has the older name, which is not read there; else ''."""
    old = OLD.get(name)
    if old is None or old not in os.environ:
        return ""
    return f" ({old} in the environment is not read: it may be another program's)"


def _tell(line: str) -> None:
    if line not in _told:  # a sweep reads it for every point
        _told.add(line)
        log.warning("run: %s", line)


def _clean(value: str | None) -> str | None:
    return value.strip() or None if value else None
