"""Content addresses: the same content gives the same short hex digest, however it was typed."""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


SOURCE = (".py", ".j2", ".js", ".css")


@cache
def package_digest() -> str:
    """Identity of kvx's own code and templates: tables made by other code are stale.

    It covers every file, so no list can miss one; computed once per process.
    """
    return digest_of_tree(Path(__file__).parents[1])


def digest_of_tree(folder: Path) -> str:
    """Identity of the code and templates below `folder`, wherever it lies."""
    files = sorted(f for f in folder.rglob("*") if f.suffix in SOURCE)
    return digest([[f.relative_to(folder).as_posix(), sha256_file(f)] for f in files], 16)


def digest(value: Any, length: int = 8) -> str:
    """First `length` hex digits of the SHA-256 of `value` as canonical JSON."""
    return sha256_text(json.dumps(value, sort_keys=True, ensure_ascii=True, default=str))[:length]
