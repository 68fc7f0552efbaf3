"""Which files of a local model shape its answers, and the identity of their content.

These are the files that transformers' and peft's `from_pretrained` read: configurations, every file
of the tokenizer, the weights as transformers chooses them, an adapter, GGUF, and the code that an
`auto_map` names. Files that might be read count too: a model counted twice costs a run, two models
taken for one give wrong results.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from kvx.errors import unreadable
from kvx.identity import file_hashes
from kvx.identity.hashing import digest

# what decides how text becomes tokens, and how long a prompt may be
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "added_tokens.json",
)  # fmt: skip
CONFIG_FILES = ("config.json", "generation_config.json")
ADAPTER = "adapter_config.json"
# vocabularies, merges, templates and processors by the names of all of transformers' classes
_TOKENIZER = (
    "*tokenizer*", "*vocab*", "merges*", "*special_tokens*", "added_tokens*", "chat_template*",
    "*.jinja", "*.model", "*.tiktoken", "*.spm", "*.bpe", "bpe.codes", "tekken.json", "dict.txt",
    "emoji.json", "normalizer.json", "byte_maps.json", "word_shape.json",
    "word_pronunciation.json", "processor_config.json", "*preprocessor_config.json",
)  # fmt: skip
_TEMPLATES = ("additional_chat_templates", "chat_templates")
# what else is read beside the weights
_SETTINGS = (
    ADAPTER, "quantize_config.json", "quant_config.json", "quantization_config.json",
    "hf_quant_config.json", "qmodel.pt",
)  # fmt: skip
_NOT_READ = (".md", ".py", ".safetensors", ".bin", ".gguf", ".lock", ".tmp")
# what a training leaves beside the weights
_OF_TRAINING = ("training_args.bin", "optimizer*.bin", "scheduler*.bin", "rng_state*")
SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
# what may be fetched of a hub model to know it, without its weights
HUB_PATTERNS = (
    *TOKENIZER_FILES,
    *CONFIG_FILES,
    *_TOKENIZER,
    ADAPTER,
    *(f"{name}/*" for name in _TEMPLATES),
)
HUB_IGNORED = tuple(f"*{suffix}" for suffix in _NOT_READ if suffix != ".py")

# an older kvx hashed weights in pieces, which covered files of up to this size completely
_OLD_PIECES, _OLD_PIECE_BYTES = 64, 1 << 16
OLD_BYTES = _OLD_PIECES * _OLD_PIECE_BYTES


def files(here: Path) -> list[Path]:
    """Every file of a local model that counts, by name."""
    folder = _folder(here)
    own = {*tokenizer_files(here), *weights(here), *_named(folder), *_code(folder)}
    names = (*CONFIG_FILES, *_SETTINGS)
    own |= {folder / name for name in names if (folder / name).is_file()}
    return sorted(own.union(folder.glob("*.index.json")))


def tokenizer_files(here: Path) -> list[Path]:
    """Of these, the files that decide how text becomes tokens; for a GGUF file, itself."""
    folder = _folder(here)
    found = {
        file
        for file in folder.iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and not file.name.endswith((".index.json", *_NOT_READ))
        and any(fnmatch(file.name, pattern) for pattern in _TOKENIZER)
    }
    found |= {f for name in _TEMPLATES for f in (folder / name).glob("*") if f.is_file()}
    named = _json(folder / "tokenizer_config.json")
    found |= {f for f in _named_in(folder, named) if f.suffix not in _NOT_READ}
    if "auto_map" in named:
        found |= set(folder.rglob("*.py"))
    return sorted(found) or _ggufs(here)


def weights(here: Path) -> list[Path]:
    """As transformers chooses them: safetensors, else torch's pickles, else GGUF."""
    folder = _folder(here)
    if here != folder:
        return _ggufs(here)
    chosen = any((folder / name).is_file() for name in SAFETENSORS)
    found = {
        file
        for file in folder.glob("*.safetensors")
        if not (chosen and file.name.startswith("consolidated"))  # another library's copy
    }
    for file in folder.glob("*.bin"):
        trained = any(fnmatch(file.name, pattern) for pattern in _OF_TRAINING)
        if not trained and (not chosen or file.name.startswith("adapter")):
            found.add(file)
    for index in folder.glob("*.index.json"):
        named = _json(index).get("weight_map")
        if isinstance(named, dict) and (not chosen or index.name in SAFETENSORS):
            found |= {folder / str(name) for name in named.values()}
    return sorted(f for f in found if f.is_file()) or _ggufs(here)


def parts(here: Path, what: str) -> list[Any]:
    """The identity of a local model's files, as plain data. Raises `UserError` for unreadable
    files.

    Keeps the ids of models that older versions hashed whole: known names of tokenizer and
    configuration, and no safetensors of more than `OLD_BYTES`.
    """
    folder = _folder(here)
    sha = _sha256_of(files, here, what)
    names = {file: _name(file, folder) for file in sha}
    known = {n: sha[f] for f, n in names.items() if n in (*TOKENIZER_FILES, *CONFIG_FILES)}
    safe = [f for f in sha if f.suffix == ".safetensors" and f.parent == folder]
    old = {f: _old_sha256(sha[f], f) for f in safe if f.stat().st_size <= OLD_BYTES}
    found: list[Any] = [digest(known, 12), [[f.name, old.get(f, sha[f])] for f in safe]]
    others = {n: sha[f] for f, n in names.items() if n not in known and f not in safe}
    return [*found, others] if others else found


def tokenizer_parts(here: Path) -> dict[str, Any]:
    """The identity of a tokenizer's files, by name."""
    folder = _folder(here)
    read = _sha256_of(tokenizer_files, here, str(here))
    found: dict[str, Any] = {_name(file, folder): sha for file, sha in read.items()}
    own, model = _json(folder / "tokenizer_config.json"), _json(folder / "config.json")
    has_own = (folder / "tokenizer_config.json").is_file()
    if model and has_own and "tokenizer_class" not in own:
        found["class"] = [model.get("model_type"), model.get("tokenizer_class")]
    return found


def _sha256_of(chosen: Callable[[Path], list[Path]], here: Path, what: str) -> dict[Path, str]:
    try:
        return file_hashes.sha256_of(chosen(here), what)
    except OSError as error:
        raise unreadable(here, error) from None


@lru_cache(maxsize=1024)
def _old_sha256(sha: str, file: Path) -> str:
    """The hash that an older kvx had of a file with this `sha`: of pieces that overlap."""
    size = file.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with file.open("rb") as handle:
        for i in range(_OLD_PIECES):
            handle.seek(i * max(size - _OLD_PIECE_BYTES, 0) // (_OLD_PIECES - 1))
            found.update(handle.read(_OLD_PIECE_BYTES))
    return found.hexdigest()


def _folder(here: Path) -> Path:
    return here.parent if here.is_file() else here


def _ggufs(here: Path) -> list[Path]:
    """A file with its other parts (`-00001-of-00003.gguf`); for a folder all there are."""
    if here.is_dir():
        return sorted(here.glob("*.gguf"))
    stem, _, count = here.stem.rpartition("-of-")
    if not stem or not count.isdigit():
        return [here]
    whole = stem.rpartition("-")[0]
    return sorted(f for f in here.parent.glob("*.gguf") if fnmatch(f.stem, f"{whole}-*-of-{count}"))


def _code(folder: Path) -> list[Path]:
    """Every module of a model that brings its own classes."""
    brings = any(
        "auto_map" in _json(folder / name)
        for name in ("config.json", "tokenizer_config.json", "processor_config.json")
    )
    return sorted(folder.rglob("*.py")) if brings else []


def _named(folder: Path) -> Iterator[Path]:
    """Files that the configurations name, whatever they are called."""
    for name in (*CONFIG_FILES, "tokenizer_config.json", ADAPTER):
        yield from _named_in(folder, _json(folder / name))


def _named_in(folder: Path, value: Any) -> Iterator[Path]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _named_in(folder, inner)
    elif isinstance(value, str) and 0 < len(value) < 200 and "\n" not in value:
        try:
            if (folder / value).is_file():
                yield folder / value
        except (OSError, ValueError):  # no name of a file
            return


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is missing or broken, which loading reports."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)
