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


def source_digest(*packages: Path) -> str:
    """Identity of the code (and templates) in `packages`: results made by other code are stale.

    A single file stands for itself.
    """
    found = (f for p in packages for f in ([p] if p.is_file() else p.rglob("*")))
    files = sorted(f for f in found if f.suffix in (".py", ".j2"))
    return digest([[f.name, sha256_file(f)] for f in files], 16)


def digest(value: Any, length: int = 8) -> str:
    """First `length` hex digits of the SHA-256 of `value` as canonical JSON."""
    return sha256_text(json.dumps(value, sort_keys=True, ensure_ascii=True, default=str))[:length]
