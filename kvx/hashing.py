"""Content addresses: the same content gives the same short hex digest, however it was typed."""

import hashlib
import json
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def digest(value: Any, length: int = 8) -> str:
    """First `length` hex digits of the SHA-256 of `value` as canonical JSON."""
    return sha256_text(json.dumps(value, sort_keys=True, ensure_ascii=True, default=str))[:length]
