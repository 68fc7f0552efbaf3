"""The manifest: the frozen, binned selection of examples that every point of an experiment runs.

It lives in `<output>/data/processed/<name>__<task>/<key>/`. `key` is a digest of everything that
decides it: the data's revision, the sampling, the templates and the model's tokenizer. So another
tokenizer or sampling never overwrites a manifest that points depend on.
"""

import dataclasses
import json
import traceback
from collections.abc import Iterator
from dataclasses import MISSING, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra.utils

from kvx.config.dataset import DatasetConfig
from kvx.config.identity import known_before, resolved
from kvx.config.schema import Config
from kvx.data.chat import today
from kvx.data.example import DatasetSource, Example
from kvx.data.files import fingerprint, read_text
from kvx.data.prompt import PromptBuilder
from kvx.data.tokenizer import (
    chat_is_dated,
    load_tokenizer,
    max_context_tokens,
    tokenizer_hash,
)
from kvx.errors import UserError
from kvx.identity import hazard_files, user_code
from kvx.identity.hashing import digest, sha256_text

FORMAT_VERSION = 1
FITTED = "examples_for"  # of a source that generates to a length in tokens
_OTHER = object()


@dataclass(frozen=True)
class Bin:
    """One context-length interval [low_tokens, high_tokens), the last one closed."""

    index: int
    low_tokens: int
    high_tokens: int
    n_available: int
    n_chosen: int


@dataclass(frozen=True)
class Entry:
    """One chosen example; `sha256` is that of its context, question and answers.

    `context_tokens_cut` tokens of its context were dropped to fit the model. `max_new_tokens`
    overrides the run's where the example's row has one.
    """

    example_id: str
    bin: int
    context_tokens: int
    prompt_tokens: int
    compressed_tokens: int
    cluster: str
    sha256: str
    context_tokens_cut: int = 0
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Manifest:
    dataset_id: str
    key: str
    tokenizer: str
    tokenizer_hash: str
    template_hash: str
    source_revision: str
    examples_sha256: str
    bins: tuple[Bin, ...]
    entries: tuple[Entry, ...]
    sampling: dict[str, Any]
    date: str | None = None  # YYYY-MM-DD for the chat template; None if it asks for none

    @property
    def identity(self) -> dict[str, Any]:
        """What stands for the data in a point's id."""
        return {"manifest": self.key, **({} if self.date is None else {"date": self.date})}

    @cached_property
    def sha256(self) -> str:
        return sha256_text(json.dumps(_body(self), sort_keys=True))


def _body(manifest: Manifest) -> dict[str, Any]:
    """Omits later fields that are at their default, so older manifests keep their hash."""
    fields = dataclasses.asdict(manifest)
    if manifest.date is None:
        del fields["date"]
    later = {f.name: f.default for f in dataclasses.fields(Entry) if f.default is not MISSING}
    fields["entries"] = [
        {name: value for name, value in entry.items() if later.get(name, _OTHER) != value}
        for entry in fields["entries"]
    ]
    return {"format_version": FORMAT_VERSION, **fields}


def dataset_id(dataset: DatasetConfig) -> str:
    return f"{dataset.name}__{dataset.task}"


def make_source(dataset: DatasetConfig) -> DatasetSource:
    """The dataset's source object. Raises `UserError` for a wrong field or implementation."""
    user_code.sources_of(dataset.source)  # drops modules that changed since they were imported
    try:
        source: DatasetSource = hydra.utils.instantiate(dataset.source, _convert_="all")
    except hydra.errors.InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"dataset.source: {_innermost(error)}") from error
    methods = ("revision", FITTED if hasattr(source, FITTED) else "examples")
    if not all(callable(getattr(source, name, None)) for name in methods):
        raise UserError(
            f"dataset.source: {type(source).__name__} has no revision() and examples(); set "
            "dataset.source._target_ to a class that has both"
        )
    return source


def _innermost(error: BaseException) -> str:
    """What the first of a chain of errors said, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


def examples_of(source: DatasetSource, config: Config) -> Iterator[Example]:
    """The examples of `source`. Raises `UserError` for what a user's class raises."""
    kind = type(source)
    try:
        if hasattr(source, FITTED):
            tokenizer, day = load_tokenizer(config.model), config.prompt.date or today()
            builder = PromptBuilder(tokenizer, config, day)
            yield from getattr(source, FITTED)(builder, config.decoding.max_new_tokens)
        else:
            yield from source.examples()
    except UserError:
        raise
    except Exception as error:
        if kind.__module__.partition(".")[0] == "kvx":
            raise
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"dataset.source: {kind.__module__}.{kind.__qualname__} raised {said} "
            f"({Path(last.filename).name}:{last.lineno})"
        ) from error


def manifest_key(config: Config, revision: str) -> str:
    """Digest of everything that decides which examples and prompts the manifest holds."""
    d = config.dataset
    # without the day itself, so that tomorrow the same command finds the same manifest
    dated = {"date": config.prompt.date or "when made"} if chat_is_dated(config.model) else {}
    code = user_code.identity_of(user_code.sources_of(d.source))
    prompt = resolved(config.prompt)
    told = {name: prompt[name] for name in ("system", "template_kwargs") if name in prompt}
    return digest(
        {
            **told,
            **({"code": code} if code else {}),
            **({"most": d.max_prompt_tokens} if d.max_prompt_tokens is not None else {}),
            "format": FORMAT_VERSION, "id": dataset_id(d), "revision": revision,
            "source": _source(d), "template": known_before(d.template),
            "binning": known_before(d.binning),
            "sampling": _sampling(d), "overflow": d.overflow.name,
            "query_aware": config.prompt.query_aware, "chat": config.model.chat_template,
            "max_context_tokens": max_context_tokens(config.model),
            "max_new_tokens": config.decoding.max_new_tokens,
            "tokenizer": tokenizer_hash(config.model), **dated,
        }
    )  # fmt: skip


def _source(dataset: DatasetConfig) -> dict[str, Any]:
    """The source's fields that its revision does not cover, as its class says (`identity_of`).

    A field that was added later changes no key at its default.
    """
    fields = {k: v for k, v in dataset.source.items() if k not in ("path", "haystack")}
    try:
        kind = hydra.utils.get_class(dataset.source["_target_"])
    except Exception:  # noqa: BLE001  `make_source` says what is wrong with it
        return fields
    identity_of = getattr(kind, "identity_of", dict)  # a user's class need not have it
    found: dict[str, Any] = identity_of(fields)
    return found


def _sampling(dataset: DatasetConfig) -> dict[str, Any]:
    """What decides which examples are chosen; for a hazard model, the prompts it was trained on."""
    fields = dataclasses.asdict(dataset.sampling)
    if not fields["whole_clusters"]:  # it came later
        del fields["whole_clusters"]
    unseen_by = fields.pop("unseen_by")
    if unseen_by is not None:
        fields["unseen_by"] = sorted(hazard_files.prompts_of(unseen_by))
    return fields


def manifest_dir(config: Config, key: str) -> Path:
    return Path(config.paths.output) / "data" / "processed" / dataset_id(config.dataset) / key


def dump(manifest: Manifest) -> str:
    return json.dumps({**_body(manifest), "sha256": manifest.sha256}, indent=1) + "\n"


def load(folder: Path, config: Config) -> Manifest:
    """Read and check a manifest.

    Raises `UserError` if it was edited, its examples changed, or it was made for another tokenizer.
    """
    path = folder / "manifest.json"
    redo = f"delete {folder} and run kvx.prepare"
    try:
        raw = json.loads(read_text(path))
        claimed = raw.pop("sha256")
        version = raw.pop("format_version")
        manifest = Manifest(
            **{
                **raw,
                "bins": tuple(Bin(**b) for b in raw["bins"]),
                "entries": tuple(Entry(**e) for e in raw["entries"]),
            }
        )
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a manifest ({error}); {redo}") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format {version}, this kvx reads {FORMAT_VERSION}; {redo}")
    if manifest.sha256 != claimed:
        raise UserError(f"{path}: changed since it was made; {redo}")
    expected = tokenizer_hash(config.model)
    if manifest.tokenizer_hash != expected:
        raise UserError(
            f"{path}: made for the tokenizer of {manifest.tokenizer} ({manifest.tokenizer_hash}), "
            f"model={config.model.name} has {expected}; {redo}"
        )
    examples = folder / "examples.parquet"
    if not examples.is_file() or fingerprint(examples) != manifest.examples_sha256:
        raise UserError(f"{examples}: missing or changed since the manifest was made; {redo}")
    return manifest
