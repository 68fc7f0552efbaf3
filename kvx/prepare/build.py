"""Build a manifest, or find the existing one of the same inputs."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from kvx.config.dataset import BinStrategy, BinUnit
from kvx.config.engine import OpenAIConfig
from kvx.config.schema import Config
from kvx.data import manifest as manifests
from kvx.data.binning import bin_edges, bin_of, choose
from kvx.data.chat import today
from kvx.data.example import Example
from kvx.data.frozen_examples import load_examples
from kvx.data.manifest import Bin, Entry, Manifest
from kvx.data.model_folder import files_of
from kvx.data.model_kind import check_kind
from kvx.data.prompt import PromptBuilder
from kvx.data.tokenizer import load_tokenizer, max_context_tokens, tokenizer_hash
from kvx.data.truncation import TRUNCATED_FROM
from kvx.errors import UserError
from kvx.identity import hazard_files
from kvx.identity.hashing import digest, sha256_file
from kvx.prepare.prompt_lengths import Sized, Sizer
from kvx.scoring.metrics import resolve
from kvx.store.atomic import write_text

log = logging.getLogger(__name__)


def ensure_manifests(configs: Sequence[Config]) -> None:
    """The manifest of every configuration, built where there is none."""
    check_sources(configs)
    for config in configs:
        ensure_manifest(config)


def check_sources(configs: Sequence[Config]) -> None:
    """Raises `UserError` for data that is not there, before any is made for another point."""
    for dataset in {id(c.dataset): c.dataset for c in configs}.values():
        manifests.make_source(dataset).revision()
    for config in configs:
        check_length(config)


def ensure_manifest(config: Config) -> tuple[Manifest, Path]:
    """The manifest for `config` and its folder; built if there is none for the same inputs.

    Raises `UserError` for a model that keeps no KV cache, and for anything wrong with the data, the
    bins or an existing manifest.
    """
    if not isinstance(config.engine, OpenAIConfig):
        check_kind(files_of(config.model), config.model.name)
    check_length(config)
    source = manifests.make_source(config.dataset)
    revision = source.revision()
    key = manifests.manifest_key(config, revision)
    folder = manifests.manifest_dir(config, key)
    if (folder / "manifest.json").exists():
        found = manifests.load(folder, config)
        if _choosy(config):  # it may have been made for another metric
            for example in load_examples(folder).values():
                _check_metrics(config, example)
        _tell(config, found)
        return found, folder
    from kvx.store import schemas  # importing Arrow costs more than finding a manifest
    from kvx.store.shards import write_table

    log.debug("prepare: building the manifest of %s", manifests.dataset_id(config.dataset))
    built, chosen = build(config, manifests.examples_of(source, config), key, revision)
    has_settings = any(_own(e) or e.max_new_tokens for e in chosen)
    schema = schemas.EXAMPLES_WITH_SETTINGS if has_settings else schemas.EXAMPLES
    rows = [vars(e) | {"meta_json": json.dumps(e.meta, sort_keys=True)} for e in chosen]
    rows = [{name: row[name] for name in schema.names} for row in rows]
    write_table(folder / "examples.parquet", rows, schema)
    complete = replace(built, examples_sha256=sha256_file(folder / "examples.parquet"))
    write_text(folder / "manifest.json", manifests.dump(complete))
    log.info(
        "prepare: %d examples in %d bins, %d–%d tokens%s → %s",
        len(complete.entries),
        len(complete.bins),
        complete.bins[0].low_tokens,
        complete.bins[-1].high_tokens,
        f", the chat template is told {complete.date}" if complete.date else "",
        folder / "manifest.json",
    )
    _tell(config, complete)
    return complete, folder


def check_length(config: Config) -> None:
    """Raises `UserError` for prompts generated to more tokens than the model takes."""
    length = config.dataset.length
    if length is not None and length > (limit := max_context_tokens(config.model)):
        raise UserError(
            f"dataset.length={length}: model={config.model.name} takes at most {limit} tokens "
            "(model.max_context_tokens)"
        )


def _tell(config: Config, manifest: Manifest) -> None:
    """Log where the manifest differs from the configuration: rows' own limits, cut contexts."""
    usual = config.decoding.max_new_tokens
    own = [e.max_new_tokens for e in manifest.entries if e.max_new_tokens not in (None, usual)]
    if own:
        log.info(
            "prepare: %d of %d rows set their own max_new_tokens, which holds for them instead of "
            "%d",
            len(own),
            len(manifest.entries),
            usual,
        )
    most = config.dataset.max_prompt_tokens
    cut = sorted(e.context_tokens_cut for e in manifest.entries if e.context_tokens_cut)
    if cut:
        log.warning(
            "prepare: %d of %d contexts do not fit %s and were cut (dataset.overflow=%s), by %d "
            "tokens in the middle case, %d at most",
            len(cut),
            len(manifest.entries),
            f"model={config.model.name}" if most is None else f"dataset.max_prompt_tokens={most}",
            config.dataset.overflow.name,
            cut[len(cut) // 2],
            cut[-1],
        )


def build(
    config: Config, examples: Iterator[Example], key: str, revision: str
) -> tuple[Manifest, list[Example]]:
    """Tokenise, bin and sample `examples`.

    Returns the manifest (without the examples' hash) and the chosen examples.
    """
    tokenizer, d = load_tokenizer(config.model), config.dataset
    builder = PromptBuilder(tokenizer, config, config.prompt.date or today())
    sizer = Sizer(config, builder)
    if d.binning.strategy is BinStrategy.edges:  # whatever the model could take
        examples = sizer.inside(_examples(examples), bin_edges([], d.binning))
    fitting = sizer.fitting(_checked(config, examples))
    found = {sized.example.example_id: sized for sized in fitting}
    if not found:
        inside = " inside dataset.binning.edges" if d.binning.edges else ""
        raise UserError(f"dataset={d.name}: the source yields no examples{inside}")
    lengths = {i: sizer.length(sized.example, sized.context_tokens) for i, sized in found.items()}
    edges = bin_edges(list(lengths.values()), d.binning)
    ids_by_bin: list[list[str]] = [[] for _ in edges[1:]]
    for example_id, length in lengths.items():
        if (index := bin_of(length, edges)) is not None:
            ids_by_bin[index].append(example_id)
    if (model := d.sampling.unseen_by) is not None:
        seen = hazard_files.prompts_of(model)
        hashes = {i: hazard_files.prompt_hash(s.example.cluster) for i, s in found.items()}
        ids_by_bin = [[i for i in ids if hashes[i] not in seen] for ids in ids_by_bin]
    clusters = {i: sized.example.cluster for i, sized in found.items()}
    chosen = choose(ids_by_bin, d.sampling, clusters)
    what = "clusters" if d.sampling.whole_clusters else "examples"
    for index, ids in enumerate(chosen):
        n_found = len({clusters[i] for i in ids}) if d.sampling.whole_clusters else len(ids)
        if n_found < d.sampling.n_per_bin and not d.sampling.pinned_ids:
            log.warning("prepare: bin %d holds only %d %s", index, n_found, what)
    places = [(index, found[i]) for index, ids in enumerate(chosen) for i in ids]
    sizes = sizer.complete([sized for _, sized in places])
    entries = [_entry(sized, index) for (index, _), sized in zip(places, sizes, strict=True)]
    tokens = list(pairwise(edges))
    if d.binning.unit is not BinUnit.tokens:  # tables name bins by tokens: of the examples in them
        tokens = [_span([found[i].context_tokens for i in ids]) for ids in ids_by_bin]
    bins = tuple(
        Bin(i, low, high, len(ids_by_bin[i]), len(chosen[i]))
        for i, (low, high) in enumerate(tokens)
    )
    manifest = Manifest(
        dataset_id=manifests.dataset_id(d),
        key=key,
        tokenizer=config.model.name,
        tokenizer_hash=tokenizer_hash(config.model),
        template_hash=builder.template_hash,
        source_revision=revision,
        examples_sha256="",
        bins=bins,
        entries=tuple(entries),
        sampling={
            "strategy": d.sampling.strategy.name,
            "seed": d.sampling.seed,
            "binning": d.binning.strategy.name,
        },
        date=builder.date,
    )
    return manifest, [found[e.example_id].example for e in entries]


def _examples(items: Iterator[Any]) -> Iterator[Example]:
    for item in items:
        if not isinstance(item, Example):
            raise UserError(
                f"dataset.source: yields {type(item).__name__}, not kvx.data.example.Example"
            )
        yield item


def _checked(config: Config, examples: Iterator[Example]) -> Iterator[Example]:
    """Raises `UserError` for an id that occurs twice, and for answers that nothing can match."""
    seen: set[str] = set()
    for example in _examples(examples):
        if example.example_id in seen:
            raise UserError(
                f"dataset={config.dataset.name}: id {example.example_id!r} occurs twice; ids must "
                "be unique"
            )
        seen.add(example.example_id)
        _check_metrics(config, example)
        yield example


def _choosy(config: Config) -> bool:
    """Whether a metric is not for every example."""
    return any(m.fits is not None or m.reads for m in resolve(config.dataset.metrics).values())


def _check_metrics(config: Config, example: Example) -> None:
    for name, metric in resolve(config.dataset.metrics).items():
        if wrong := metric.refusal(example.answers, example.meta):
            raise UserError(
                f"example {example.example_id}: {wrong}, which dataset.metrics={name} needs; mend "
                "the data or choose another metric"
            )


def _entry(sized: Sized, index: int) -> Entry:
    example, length = sized.example, sized.context_tokens
    assert sized.prompt_tokens is not None
    assert sized.compressed_tokens is not None
    return Entry(
        example_id=example.example_id,
        bin=index,
        context_tokens=length,
        prompt_tokens=sized.prompt_tokens,
        compressed_tokens=sized.compressed_tokens,
        cluster=example.cluster,
        sha256=digest([example.context, example.question, example.answers, *_own(example)], 16),
        context_tokens_cut=max(0, example.meta.get(TRUNCATED_FROM, length) - length),
        max_new_tokens=example.max_new_tokens,
    )


def _own(example: Example) -> list[Any]:
    """A row's own settings of its prompt; empty for most data."""
    if example.answer_prefix is None and not example.formatted:
        return []
    return [example.answer_prefix, example.formatted]


def _span(lengths: Sequence[int]) -> tuple[int, int]:
    return min(lengths, default=0), max(lengths, default=0)
