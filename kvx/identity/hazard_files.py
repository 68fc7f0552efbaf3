"""Where a hazard model lies, and its identity. Imports nothing slow."""

import json
from pathlib import Path

from kvx.errors import UserError
from kvx.identity.file_hashes import sha256
from kvx.identity.hashing import digest, sha256_text

MODEL, CARD = "model.json", "card.json"
# the model of experiment=guard_study, which comes with the package (docs/results/guard_offline.md)
DEFAULT = Path(__file__).parents[1] / "guard" / "default"


def folder_of(model: str | None) -> Path:
    """The directory that `guard.model` names; the packaged model's for null."""
    return DEFAULT if model is None else Path(model).expanduser()


def read(folder: Path) -> tuple[bytes, str]:
    """The model and its card. Raises `UserError` if one of them is missing or unreadable."""
    try:
        return (folder / MODEL).read_bytes(), (folder / CARD).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a text file"
        raise UserError(f"{folder}: no hazard model ({why}); make one with kvx.train") from None


def prompt_hash(cluster: str) -> str:
    """A prompt's name on a card: examples on the same text share it."""
    return sha256_text(cluster)[:12]


def prompts_of(model: str) -> frozenset[str]:
    """Hashes of the prompts that a model was trained on; `default` is the packaged one.

    Raises `UserError` if there is no such model, or its card does not say.
    """
    folder = folder_of(None if model == "default" else model)
    try:
        return frozenset(json.loads(read(folder)[1])["data"]["prompts"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{folder / CARD}: lists no prompts; run kvx.train again") from None


def identity(folder: Path) -> str:
    """Of the content of the two files, wherever they lie. Raises what `read` does."""
    try:
        return digest([sha256(folder / name) for name in (MODEL, CARD)], 12)
    except UserError:
        read(folder)  # says what to do
        raise


def is_still(folder: Path, known: str) -> bool:
    """Whether the files of a folder still have this `identity`."""
    try:
        return identity(folder) == known
    except UserError:
        return False
