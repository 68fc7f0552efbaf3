"""The model's tokenizer and the identity of its files, without loading the model."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvx.config.language_model import ModelConfig
from kvx.data import model_identity
from kvx.data.chat import is_dated
from kvx.data.model_folder import files_of, has_vocabulary, loading_reason, read_json, read_text
from kvx.errors import UserError
from kvx.identity.hashing import digest

SAMPLE = "The number is 17."


def tokenizer_hash(model: ModelConfig) -> str:
    """Identity of the files that decide how text becomes tokens, as they are now.

    An adapter without its own tokenizer has that of its base.
    """
    found = files_of(model)
    return digest(model_identity.tokenizer_parts(found.gguf or found.tokenizer), 12)


def model_hash(model: ModelConfig) -> str:
    """Identity of a model as it is now: a hub model's commit, or the whole content of a local one.

    An adapter's includes that of its base. Raises `UserError` if a file cannot be read, or an
    adapter's base is missing.
    """
    files, what = files_of(model), f"model={model.name}"
    if files.base is not None:
        assert files.adapter is not None
        own = model_identity.parts(files.adapter, what)
        return digest([*own, {"base": model_hash(files.base)}], 12)
    if files.hub is not None:
        return digest(["hub", files.folder.name], 12)
    return digest(model_identity.parts(files.gguf or files.folder, what), 12)


def max_context_tokens(model: ModelConfig) -> int:
    """`model.max_context_tokens`, else the model configuration's own limit."""
    if model.max_context_tokens is not None:
        return model.max_context_tokens
    config = files_of(model).read_config()
    inner = config.get("text_config")  # of a multimodal model
    sizes = [c.get("max_position_embeddings") for c in (config, inner) if isinstance(c, dict)]
    limit = next(filter(None, sizes), None)
    if not isinstance(limit, int) or limit < 1:
        raise UserError(
            f"model={model.name}: no max_position_embeddings; set model.max_context_tokens"
        )
    return limit


def chat_is_dated(model: ModelConfig) -> bool:
    """Whether prompts for `model` may depend on the day, from its files alone."""
    folder = files_of(model).tokenizer
    if not model.chat_template:
        return False
    if (alone := folder / "chat_template.jinja").is_file():  # transformers prefers it, too
        return is_dated(read_text(alone))
    return is_dated(_settings(folder).get("chat_template"))


def _settings(folder: Path) -> dict[str, Any]:
    config = folder / "tokenizer_config.json"
    return read_json(config) if config.is_file() else {}


def load_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer, loaded once per process while its files stay as they are.

    Raises `UserError` if there is none, or it cannot be loaded.
    """
    files = files_of(model)
    folder = files.tokenizer
    # the folder's own Python may make the tokenizer, from files of any name
    has_code = model.trust_remote_code and "auto_map" in _settings(folder)
    if not has_vocabulary(folder) and not has_code:
        # transformers would make an empty tokenizer, or an inexact one from a GGUF file
        what = f"{files.gguf.name} brings none that is exact" if files.gguf else "there is none"
        raise UserError(
            f"model={model.name}: needs a tokenizer in {folder}, and {what}; copy tokenizer.json "
            "and tokenizer_config.json there from the model it was made from"
        )
    return _load(folder, model.trust_remote_code, model.name, tokenizer_hash(model))


@lru_cache(maxsize=8)
def _load(folder: Path, trust: bool, name: str, content: str) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast, logging

    logging.set_verbosity_error()  # kvx reports contexts that are too long itself
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        words = tokenizer.encode(SAMPLE, add_special_tokens=False)
        if "auto_map" not in _settings(folder) and _is_not_of_file(folder, words):
            tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
            words = tokenizer.encode(SAMPLE, add_special_tokens=False)
    except Exception as error:
        for file in sorted(folder.glob("*.json")):
            if file.name in (*model_identity.TOKENIZER_FILES, "config.json"):
                read_json(file)  # says which one is damaged
        _check_config(folder, trust, name)  # the tokenizer's class is chosen by it
        raise UserError(
            f"model={name}: its tokenizer cannot be loaded from {folder}: {loading_reason(error)}"
        ) from error
    if not words:
        raise UserError(
            f"model={name}: its tokenizer in {folder} finds no token in {SAMPLE!r}: its vocabulary "
            "is empty or another's; copy tokenizer.json from the model it was made from"
        )
    return tokenizer


def _is_not_of_file(folder: Path, words: Sequence[int]) -> bool:
    """Whether transformers took another tokenizer than tokenizer.json holds.

    Since 5.24 some model types (qwen2) have a class of their own whatever the files say, which then
    finds few of the file's tokens. Other differences, of a space at the beginning say, are a matter
    of settings.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        return False
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(str(file)).encode(SAMPLE, add_special_tokens=False).ids
    return 2 * len(words) < len(own)


def _check_config(folder: Path, trust: bool, name: str) -> None:
    """Raises `UserError` for a config.json that transformers makes no configuration of."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        return
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    except Exception as error:
        raise UserError(
            f"model={name}: {folder}/config.json cannot be used: {loading_reason(error)}"
        ) from error
