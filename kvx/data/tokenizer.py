"""The model's tokenizer and the identity of its files, without loading the model."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from kvx.config.schema import ModelConfig
from kvx.data import model_identity
from kvx.data.chat import is_dated
from kvx.data.model_folder import (
    files_of,
    has_vocabulary,
    loading_reason,
    read_json,
    read_text,
)
from kvx.errors import UserError
from kvx.identity.hashing import digest


def tokenizer_hash(model: ModelConfig) -> str:
    """Identity of the files that decide how text becomes tokens, as they are now.

    Of an adapter without a tokenizer of its own, that of its base.
    """
    found = files_of(model)
    return digest(model_identity.tokenizer_parts(found.gguf or found.tokenizer), 12)


def model_hash(model: ModelConfig) -> str:
    """Identity of a model as it is now: a hub model's by its commit, a local one's by every file
    that `from_pretrained` would read, whole; an adapter's by that of its base too.

    Raises `UserError` if a file cannot be read, or an adapter's base is not there.
    """
    files, what = files_of(model), f"model={model.name}"
    if files.base is not None:
        assert files.adapter is not None
        own = model_identity.parts(files.adapter, what)
        return digest([*own, {"base": model_hash(files.base)}], 12)
    if files.hub is not None:
        return digest(["hub", files.folder.name], 12)
    return digest(model_identity.parts(files.gguf or files.folder, what), 12)


def model_files(model: ModelConfig) -> list[Path]:
    """Every file of a local model that is part of its identity; none of a hub model, which its
    commit stands for.
    """
    found = files_of(model)
    if found.adapter is not None:
        return model_identity.files(found.adapter)
    return [] if found.hub is not None else model_identity.files(found.gguf or found.folder)


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
    return _load(folder, model.trust_remote_code, model.name, tokenizer_hash(model))


def _has_code(folder: Path, model: ModelConfig) -> bool:
    """Whether the folder's own Python makes the tokenizer, from files of any name."""
    config = folder / "tokenizer_config.json"
    return model.trust_remote_code and config.is_file() and "auto_map" in read_json(config)


@lru_cache(maxsize=8)
def _load(folder: Path, trust: bool, name: str, content: str) -> Any:
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()  # long contexts are kvx's business, and said in one line
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except Exception as error:
        for file in sorted(folder.glob("*.json")):
            if file.name in (*model_identity.TOKENIZER_FILES, "config.json"):
                read_json(file)  # says which one is damaged
        raise UserError(
            f"model={name}: its tokenizer cannot be loaded from {folder}: {loading_reason(error)}"
        ) from error
