"""The model's tokenizer and the identity of its files, without loading the model."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

from kvx.config import ModelConfig
from kvx.errors import UserError
from kvx.hashing import digest, sha256_file

# what decides how text becomes tokens, and how long a prompt may be
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "added_tokens.json",
)  # fmt: skip
CONFIG_FILES = ("config.json", "generation_config.json")


def model_dir(model: ModelConfig) -> Path:
    """Local directory holding at least the model's tokenizer and configuration files.

    A hub id is resolved through the hub's own cache (no weights are fetched). Raises `UserError`
    if the model is neither a directory nor reachable.
    """
    if _is_local(model):
        return Path(model.path).expanduser()
    return _hub_dir(model.path, model.revision, model.name)


def _is_local(model: ModelConfig) -> bool:
    return (Path(model.path).expanduser() / "config.json").is_file()


@cache
def _hub_dir(repo: str, revision: str | None, name: str) -> Path:
    if repo.startswith((os.sep, ".", "~")) or repo.count("/") > 1 or Path(repo).exists():
        hint = "run `make assets` (or kvx-assets)" if name == "smollm2" else "set model.path"
        raise UserError(f"model={name}: no model in {repo}; {hint}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = [*TOKENIZER_FILES, *CONFIG_FILES]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"model.path={repo}: not a local directory, and the hub did not give it "
            f"({type(error).__name__}); set model.path to a directory with config.json"
        ) from None


@cache
def _digest_files(folder: Path, names: tuple[str, ...]) -> str:
    present = {n: sha256_file(folder / n) for n in names if (folder / n).is_file()}
    return digest(present, 12)


def tokenizer_hash(model: ModelConfig) -> str:
    return _digest_files(model_dir(model), TOKENIZER_FILES)


def model_hash(model: ModelConfig) -> str:
    """Identity of a model: a hub model's by its commit, a directory's by files and weights.

    Weights are sampled (64 pieces of 64 KiB per file), since hashing them whole takes minutes.
    """
    folder = model_dir(model)
    if not _is_local(model):
        return digest(["hub", folder.name], 12)
    return digest([_digest_files(folder, TOKENIZER_FILES + CONFIG_FILES), _weights(folder)], 12)


@cache
def _weights(folder: Path) -> list[list[str]]:
    return [[f.name, _sampled(f)] for f in sorted(folder.glob("*.safetensors"))]


def _sampled(file: Path, pieces: int = 64, piece_bytes: int = 1 << 16) -> str:
    size = file.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with file.open("rb") as handle:
        for i in range(pieces):
            handle.seek(i * max(size - piece_bytes, 0) // (pieces - 1))
            found.update(handle.read(piece_bytes))
    return found.hexdigest()


def max_context_tokens(model: ModelConfig) -> int:
    """`model.max_context_tokens`, else the model configuration's own limit."""
    if model.max_context_tokens is not None:
        return model.max_context_tokens
    config = json.loads((model_dir(model) / "config.json").read_text())
    limit = config.get("max_position_embeddings") or config.get("text_config", {}).get(
        "max_position_embeddings"
    )
    if not limit:
        raise UserError(
            f"model={model.name}: no max_position_embeddings; set model.max_context_tokens"
        )
    return int(limit)


@cache
def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()  # long contexts are kvx's business, and said in one line

    return AutoTokenizer.from_pretrained(folder)


def load_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer, loaded once per process."""
    return _load(model_dir(model))
