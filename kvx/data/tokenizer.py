"""The model's tokenizer and the identity of its files, without loading the model."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from kvx.config import ModelConfig
from kvx.data.chat import is_dated
from kvx.data.model_folder import (
    files_of,
    has_vocabulary,
    loading_reason,
    read_json,
    read_text,
)
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
    return files_of(model).folder


def _is_local(model: ModelConfig) -> bool:
    return files_of(model).hub is None


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
    config = files_of(model).read_config()
    text = config.get("text_config")
    limit = config.get("max_position_embeddings") or (text if isinstance(text, dict) else {}).get(
        "max_position_embeddings"
    )
    if not isinstance(limit, int) or limit < 1:
        raise UserError(
            f"model={model.name}: no max_position_embeddings; set model.max_context_tokens"
        )
    return limit


def chat_is_dated(model: ModelConfig) -> bool:
    """Whether prompts for `model` may depend on the day, from its files alone."""
    return model.chat_template and is_dated(_chat_template(files_of(model).tokenizer))


def _chat_template(folder: Path) -> Any:
    """The template as transformers finds it: a file of its own goes before the tokenizer's."""
    if (alone := folder / "chat_template.jinja").is_file():
        return read_text(alone)
    config = folder / "tokenizer_config.json"
    return read_json(config).get("chat_template") if config.is_file() else None


def load_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer, loaded once per process as long as its files stay as they are.

    Raises `UserError` where there is none, or none that can be loaded.
    """
    files = files_of(model)
    folder = files.tokenizer
    if not has_vocabulary(folder) and not _has_code(folder, model):
        # of a folder without one transformers makes an empty one, of a GGUF file's not always
        # what the model was trained with
        what = f"{files.gguf.name} brings none that is exact" if files.gguf else "there is none"
        raise UserError(
            f"model={model.name}: needs a tokenizer in {folder}, and {what}; copy tokenizer.json "
            "and tokenizer_config.json there from the model it was made from"
        )
    found = sorted(f for f in folder.iterdir() if f.is_file())
    stats = tuple((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in found)
    return _load(folder, model.trust_remote_code, model.name, stats)


def _has_code(folder: Path, model: ModelConfig) -> bool:
    """Whether the folder's own Python makes the tokenizer, from files of any name."""
    config = folder / "tokenizer_config.json"
    return model.trust_remote_code and config.is_file() and "auto_map" in read_json(config)


@cache
def _load(folder: Path, trust: bool, name: str, stats: object) -> Any:
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()  # long contexts are kvx's business, and said in one line
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except Exception as error:
        for file in sorted(folder.glob("*.json")):
            if file.name in (*TOKENIZER_FILES, "config.json"):
                read_json(file)  # says which one is damaged
        raise UserError(
            f"model={name}: its tokenizer cannot be loaded from {folder}: {loading_reason(error)}"
        ) from error
