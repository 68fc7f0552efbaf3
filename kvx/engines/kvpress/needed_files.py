"""Files that presses load for a model: named in their YAML, looked for before a model is loaded."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from string import Formatter
from typing import Any
from urllib.parse import urlsplit

from kvx.config import conditions
from kvx.config.language_model import ModelConfig
from kvx.config.press_config import HubFile, PressConfig
from kvx.data.model_folder import files_of, hub_id_of
from kvx.errors import UserError, first_line

TIMEOUT_S = 10
OFFLINE = "HF_HUB_OFFLINE"

_unreachable: dict[str, str] = {}  # by host, why: not tried again for every press


def missing_file(press: PressConfig, model: ModelConfig) -> str | None:
    """Why a file that `press` needs for `model` cannot be had; None if all can."""
    given = press.method or {}
    needed_files = [f for f in press.hub if given.get(f.unless) is None]
    name = name_of(model) if needed_files else ""
    ours = [f for f in needed_files if not f.models or name in f.models]
    if needed_files and not ours:
        listed = ", ".join(other for f in needed_files for other in f.models)
        return f"it needs a file that there is for {listed} only"
    for needed in ours:
        known = _counted(model) if "{groups}" in needed.file else {}
        if (why := _unavailable(address(needed, press, name, known))) is not None:
            return why
    return None


def _counted(model: ModelConfig) -> dict[str, Any]:
    """Query heads for each KV head, by which some files are named."""
    try:
        config = files_of(model).read_text_config()
    except UserError:
        return {}
    heads = config.get("num_attention_heads", 1)
    return {"groups": heads // (config.get("num_key_value_heads") or heads)}


def name_of(model: ModelConfig) -> str:
    """The name by which kvpress's presses look files up: a hub id, else the folder."""
    try:
        return hub_id_of(files_of(model)) or model.path
    except UserError:  # no such model: whoever loads it says so
        return model.path


def address(
    needed: HubFile, press: PressConfig, model: str, counted: Mapping[str, Any] | None = None
) -> str:
    """The file's address for the `model` of a name. Raises `UserError` for an unknown blank."""
    last = Path(model).name
    known = {
        "model": last,
        "lower": last.lower(),
        # as QFilterPress names them
        "llama": last if "405B" in last else last.replace("Meta-Llama", "Llama"),
        "path": model,
        **(counted or {}),
        **conditions.names_of(press.method or {}),
    }
    for _, blank, _, _ in Formatter().parse(needed.file):
        if blank is not None and blank not in known:
            raise UserError(
                f"press={press.name}: hub: {needed.file}: {{{blank}}} is not known; there are "
                f"{', '.join(known)}"
            )
    return needed.file.format_map({name: str(v).replace("/", "_") for name, v in known.items()})


@lru_cache(maxsize=256)
def _unavailable(file: str) -> str | None:
    """Why a file can be neither read nor fetched, as the end of a sentence; None if it can."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if "://" in file:
        return f"it needs {file}, and {OFFLINE} is set" if constants.HF_HUB_OFFLINE else _at(file)
    repository, _, name = file.partition(":")
    where = f"it needs {name} of {repository} at the hub"
    try:
        if isinstance(try_to_load_from_cache(repository, name), str):
            return None
    except HFValidationError:
        return f"{where}, which is no name of a repository"
    if constants.HF_HUB_OFFLINE:
        return f"{where}, which is not in the cache, and {OFFLINE} is set"
    return _at_hub(repository, name, where)


def _at_hub(repository: str, name: str, where: str) -> str | None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    url = hf_hub_url(repository, name)
    if (why := _unreachable.get(urlsplit(url).netloc)) is not None:
        return f"{where}, {why}"
    try:
        get_hf_file_metadata(url, timeout=TIMEOUT_S)
    except HfHubHTTPError as error:
        code = getattr(error.response, "status_code", None)
        if code in (401, 403, 404):
            return f"{where}, where there is none"
        return f"{where}, which answers {code}"
    except Exception as error:  # noqa: BLE001  no network, in the words of any of its layers
        why = f"which is not in the cache, and the hub cannot be reached ({_told(error)})"
        _unreachable[urlsplit(url).netloc] = why
        return f"{where}, {why}"
    return None


def _at(url: str) -> str | None:
    import requests

    try:
        answer = requests.head(url, timeout=TIMEOUT_S, allow_redirects=True)
    except requests.RequestException as error:
        return f"it needs {url}, which cannot be reached ({_told(error)})"
    return None if answer.ok else f"it needs {url}, which answers {answer.status_code}"


def _told(error: BaseException) -> str:
    """The innermost cause, by name: messages of network errors are long."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return first_line(error)[:80]
