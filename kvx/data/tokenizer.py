"""The model's tokenizer and the identity of its files, without loading the model."""

import json
import os
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from kvx.config import ModelConfig
from kvx.data import model_identity
from kvx.errors import UserError
from kvx.hashing import digest


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
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=list(model_identity.HUB_PATTERNS),
                ignore_patterns=list(model_identity.HUB_IGNORED),
            )
        )  # fmt: skip
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"model.path={repo}: not a local directory, and the hub did not give it "
            f"({type(error).__name__}); set model.path to a directory with config.json"
        ) from None


def tokenizer_hash(model: ModelConfig) -> str:
    """Identity of the files that decide how text becomes tokens, as they are now.

    Of an adapter without a tokenizer of its own, that of its base.
    """
    here = model_identity.local_path(model.path) or model_dir(model)
    found = model_identity.tokenizer_parts(here)
    if not found and (base := adapter_base(model)) is not None:
        return tokenizer_hash(base)
    return digest(found, 12)


def model_hash(model: ModelConfig) -> str:
    """Identity of a model as it is now: a hub model's by its commit, a local one's by every file
    that `from_pretrained` would read, whole; an adapter's by that of its base too.

    Raises `UserError` if a file cannot be read, or an adapter's base is not there.
    """
    here = model_identity.local_path(model.path)
    if here is None:
        found: list[Any] = ["hub", model_dir(model).name]
    else:
        found = model_identity.parts(here, f"model={model.name}")
    if (base := adapter_base(model)) is not None:
        found.append({"base": model_hash(base)})
    return digest(found, 12)


def model_files(model: ModelConfig) -> list[Path]:
    """Every file of a local model that is part of its identity; none of a hub model, which its
    commit stands for.
    """
    here = model_identity.local_path(model.path)
    return [] if here is None else model_identity.files(here)


def adapter_base(model: ModelConfig) -> ModelConfig | None:
    """The model that an adapter is put onto; None if the model is no adapter."""
    here = model_identity.local_path(model.path)
    if here is not None and here.is_file():
        return None
    base = model_identity.adapter_base(here or model_dir(model))
    if base is None:
        return None
    return replace(model, name=f"{model.name} (its base)", path=base[0], revision=base[1])


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


@lru_cache(maxsize=8)
def _load(folder: Path, content: str) -> Any:
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()  # long contexts are kvx's business, and said in one line

    return AutoTokenizer.from_pretrained(folder)


def load_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer, loaded once per process as long as its files stay what they are."""
    return _load(model_dir(model), tokenizer_hash(model))
