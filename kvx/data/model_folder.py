"""Where a model's files are, and what kind of model they are; does not import torch."""

import json
import os
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from kvx.config.language_model import ModelConfig
from kvx.data import gguf_file
from kvx.data.model_identity import ADAPTER, HUB_IGNORED, HUB_PATTERNS
from kvx.errors import UserError, unreadable

LFS = "version https://git-lfs"  # the first line of a git-lfs pointer
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# any one of these holds a vocabulary
VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "tokenizer.model.v3", "vocab.json", "vocab.txt",
    "spiece.model", "sentencepiece.bpe.model", "tekken.json", "*.tiktoken",
)  # fmt: skip
FETCH_AGAIN = "fetch it again (git lfs pull, or hf download)"


@dataclass(frozen=True)
class ModelFiles:
    """`folder` holds configuration and tokenizer, if they are local.

    `gguf`: the file that is the model. `adapter`: the folder of a peft adapter, whose `base` the
    rest describes. `hub`: the id of a model in the hub's cache, at `revision`.
    """

    folder: Path
    gguf: Path | None = None
    adapter: Path | None = None
    hub: str | None = None
    base: ModelConfig | None = None
    revision: str | None = None

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer: an adapter may bring its own."""
        if self.adapter is not None and has_vocabulary(self.adapter):
            return self.adapter
        return self.folder

    def read_config(self) -> dict[str, Any]:
        """config.json, or what a GGUF file says in its place. Raises `UserError`."""
        if self.gguf is not None:
            return gguf_file.config(self.gguf)
        return read_json(self.folder / "config.json")

    def read_text_config(self) -> dict[str, Any]:
        """`read_config` of the text model, also where it is one part of several."""
        own = self.read_config()
        text = own.get("text_config")
        return {**own, **text} if isinstance(text, dict) else own


def files_of(model: ModelConfig) -> ModelFiles:
    """What `model.path` names. Raises `UserError` if it is not a model."""
    path = Path(model.path).expanduser()
    try:
        if path.is_file():
            if gguf_file.is_gguf(path) and path.suffix == ".gguf":
                return ModelFiles(path.parent, gguf=path)
            refuse_pointer(path)
            raise UserError(f"model.path={path}: is a file; give a model's folder or a .gguf file")
        if path.is_dir():
            os.listdir(path)  # raises here, and not in what comes later
            return _local_folder(model, path)
    except OSError as error:
        raise unreadable(f"model.path={path}", error) from None
    folder = _hub_dir(model.path, model.revision, model.name)
    # the commit as of now: a branch may move before the weights are loaded
    commit = folder.name if re.fullmatch(r"[0-9a-f]{40}", folder.name) else model.revision
    return ModelFiles(folder, hub=model.path, revision=commit)


def _local_folder(model: ModelConfig, path: Path) -> ModelFiles:
    whole = [name for name in WEIGHTS if (path / name).exists()]
    if (path / ADAPTER).is_file():
        if whole:
            raise UserError(
                f"model.path={path}: holds a model ({whole[0]}) and an adapter ({ADAPTER}); "
                "which one? move one of them to a folder of its own"
            )
        return _adapter(model, path)
    found = sorted(path.glob("*.gguf"))
    if found and not whole:
        if len(found) > 1:
            names = ", ".join(f.name for f in found)
            raise UserError(f"model.path={path}: holds several GGUF files; give one of {names}")
        return ModelFiles(path, gguf=found[0])
    if (path / "config.json").exists():
        return ModelFiles(path)
    hint = "set model.path to a folder with config.json"
    # a folder above it, also that of the hub's own cache
    inside = sorted([*path.glob("*/config.json"), *path.glob("snapshots/*/config.json")])
    if len(inside) == 1:
        hint = f"did you mean {inside[0].parent}?"
    elif whole:
        hint = f"it has {whole[0]} but no config.json; copy it from the model it was made from"
    elif model.name == "smollm2":
        hint = "run `make assets` (or kvx-assets)"
    raise UserError(f"model={model.name}: no model in {path}; {hint}")


def _adapter(model: ModelConfig, path: Path) -> ModelFiles:
    """An adapter and its base, which its configuration names by path or hub id."""
    adapter = read_json(path / ADAPTER)
    named, revision = adapter.get("base_model_name_or_path"), adapter.get("revision")
    where = f"base_model_name_or_path in {path / ADAPTER}"
    if not named or not isinstance(named, str):
        raise UserError(f"model={model.name}: is an adapter that names no base; set {where}")
    beside = path / named
    base = ModelConfig(
        name=f"{model.name}'s base",
        path=str(beside if not Path(named).expanduser().exists() and beside.is_dir() else named),
        # peft's `revision` is the base's; the adapter itself is a local folder
        revision=revision if isinstance(revision, str) else None,
    )
    try:
        files = files_of(base)
    except UserError as error:
        hint = f"(model={model.name} is an adapter of it; or set {where})"
        raise UserError(f"{error} {hint}") from None
    if files.adapter is not None or files.gguf is not None:
        kind = "another adapter" if files.adapter else "a GGUF file"
        raise UserError(f"model={model.name}: is an adapter of {kind} ({named}); merge that first")
    return replace(files, adapter=path, base=base)


@cache
def _hub_dir(repo: str, revision: str | None, name: str) -> Path:
    if repo.startswith((os.sep, ".", "~")) or repo.count("/") > 1:
        hint = "run `make assets` (or kvx-assets)" if name == "smollm2" else "set model.path"
        raise UserError(f"model={name}: no model in {repo}; {hint}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns, ignored = [*HUB_PATTERNS, *VOCABULARIES, "*.py"], list(HUB_IGNORED)
        folder = Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=patterns, ignore_patterns=ignored
            )
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"model.path={repo}: not a local directory, and the hub did not give it "
            f"({type(error).__name__}); set model.path to a directory with config.json"
        ) from None
    if not (folder / "config.json").is_file():
        kind = "an adapter" if (folder / ADAPTER).is_file() else "no model for transformers"
        raise UserError(
            f"model.path={repo}: is {kind} (there is no config.json); fetch it with "
            f"`hf download {repo}` and set model.path to the folder, or to its .gguf file"
        )
    return folder


def hub_id_of(files: ModelFiles) -> str | None:
    """The id of a model that came from the hub, also where its folder in the cache is given."""
    if files.hub is not None:
        return files.hub
    # models--<owner>--<name>/snapshots/<commit>
    cached = files.folder.absolute().parents
    if len(cached) < 2 or cached[0].name != "snapshots":
        return None
    kind, _, name = cached[1].name.partition("--")
    return name.replace("--", "/") if kind == "models" and name else None


def has_vocabulary(folder: Path) -> bool:
    return any(next(folder.glob(name), None) is not None for name in VOCABULARIES)


def read_text(path: Path) -> str:
    """A file of a model's folder. Raises `UserError` if it cannot be read or is not UTF-8 text."""
    refuse_pointer(path)
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; {FETCH_AGAIN}") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder. Raises `UserError` for anything else."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON ({error}); {FETCH_AGAIN}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is a {type(value).__name__}, not a JSON object; {FETCH_AGAIN}")
    return value


def refuse_pointer(path: Path) -> None:
    """Raises `UserError` for a git-lfs pointer, an empty or an unreadable file."""
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS))
    except OSError as error:
        raise unreadable(path, error) from None
    if head == LFS.encode():
        raise UserError(f"{path}: is a git-lfs pointer, not the file itself; {FETCH_AGAIN}")
    if not head:
        raise UserError(f"{path}: is empty; {FETCH_AGAIN}")


def loading_reason(error: Exception) -> str:
    """Why a library could not load something, in one line: its first sentence and its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("trust_remote_code" in line for line in lines):
        return (
            "it needs Python code that comes with it; read that code, and set "
            "model.trust_remote_code=true to run it"
        )
    said = lines[0] if lines else "no reason given"
    if said.endswith(":") and len(lines) > 1:
        said += f" {lines[1]}"
    return f"{said[:300]} ({type(error).__name__})"
