"""Prepare counts tokens in batches, each text once, and does nothing when nothing changed."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kvx.cli.command import compose
from kvx.config.dataset import SamplingConfig
from kvx.config.schema import Config
from kvx.data.binning import choose
from kvx.data.frozen_examples import load_examples
from kvx.data.prompt import PromptBuilder
from kvx.data.token_counts import TokenCounter, batches
from kvx.data.tokenizer import load_tokenizer
from kvx.prepare import build
from kvx.prepare.build import ensure_manifest


def recall(tmp_path: Path, *more: str) -> Config:
    paths = (f"paths.output={tmp_path}", "dataset.source.n_examples=60")
    return compose("dataset=recall", "dataset.sampling.n_per_bin=4", *paths, *more)


class Watched:
    """A tokenizer that counts how often it encodes a text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.seen = tokenizer, Counter[str]()
        self.backend_tokenizer = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        self.seen[text] += 1
        found: list[int] = self.tokenizer.encode(text, **options)
        return found

    def encode_batch_fast(self, texts: Sequence[str], **options: Any) -> Any:
        self.seen.update(texts)
        return self.tokenizer.backend_tokenizer.encode_batch_fast(list(texts), **options)


def test_each_text_is_tokenised_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = recall(tmp_path, "dataset.binning.strategy=edges", "dataset.binning.edges=[300,900]")
    watched = Watched(load_tokenizer(config.model))
    monkeypatch.setattr(build, "load_tokenizer", lambda model: watched)
    manifest, folder = ensure_manifest(config)
    # the first text shows twice whether the fast way gives the same ids
    assert sorted(watched.seen.values())[-2] == 1
    assert watched.seen.total() <= 60 + 2 * 4 + 2
    builder = PromptBuilder(load_tokenizer(config.model), config)
    for example in load_examples(folder).values():
        entry = next(e for e in manifest.entries if e.example_id == example.example_id)
        parts = builder.parts(example)
        assert entry.context_tokens == builder.context_tokens(example)
        assert entry.prompt_tokens == parts.n_tokens
        assert entry.compressed_tokens == len(parts.compressed_ids)


def test_nothing_is_loaded_when_nothing_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recall(tmp_path)
    first = ensure_manifest(config)

    def loads(*arguments: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(build, "load_tokenizer", loads)
    monkeypatch.setattr("kvx.data.sources.recall.RecallSource.examples", loads)
    assert ensure_manifest(config) == first


def test_prompts_that_only_just_fit_are_measured(tmp_path: Path) -> None:
    """Those that surely fit are not tokenised; at the limit it is the true length that counts."""
    rows = [{"context": "the fox " * (40 + n), "question": "who", "answers": ["a"]} for n in (0, 1)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))

    def longest(limit: int) -> int:
        config = compose(
            "dataset=local", f"dataset.source.path={file}", f"paths.output={tmp_path}",
            "dataset.binning.n_bins=1", f"model.max_context_tokens={limit}",
            "dataset.overflow=truncate_middle", "decoding.max_new_tokens=10",
        )  # fmt: skip
        manifest, _ = ensure_manifest(config)
        return max(e.prompt_tokens for e in manifest.entries)

    free = longest(2000)
    assert longest(free + 10) == free
    assert longest(free + 9) < free


def test_questions_on_one_context_keep_one_context_when_it_is_cut(tmp_path: Path) -> None:
    rows = [
        {"context": f"the fox {n} " * 60, "question": "who is it " * k, "answers": ["a"]}
        for k in (1, 9, 4)
        for n in (1, 2)  # rows on one context are not neighbours
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    config = compose(
        "dataset=local", f"dataset.source.path={file}", f"paths.output={tmp_path}",
        "dataset.sampling.whole_clusters=true", "dataset.binning.n_bins=1",
        "model.max_context_tokens=150", "dataset.overflow=truncate_middle",
        "decoding.max_new_tokens=10",
    )  # fmt: skip
    manifest, folder = ensure_manifest(config)
    contexts: dict[str, set[str]] = {}
    for example in load_examples(folder).values():
        contexts.setdefault(example.cluster, set()).add(example.context)
    assert [len(c) for c in contexts.values()] == [1, 1]
    assert max(e.prompt_tokens for e in manifest.entries) <= 140
    assert len({e.context_tokens_cut for e in manifest.entries}) == 1


def test_counts_without_a_fast_tokenizer_are_the_same() -> None:
    class Slow:
        def encode(self, text: str, add_special_tokens: bool) -> list[int]:
            assert not add_special_tokens
            return [len(word) for word in text.split()]

    counts = TokenCounter(Slow())(["a bb", "", "ccc"])
    assert [(c.n_tokens, c.highest_id) for c in counts] == [(2, 2), (0, -1), (1, 3)]
    assert list(batches("abcde", lambda _: 2, 4)) == [["a", "b"], ["c", "d"], ["e"]]


def test_whole_clusters_are_chosen() -> None:
    clusters = {f"{c}{i}": c for c in "abcd" for i in range(3)}
    sampling = SamplingConfig(n_per_bin=2, whole_clusters=True)
    (chosen,) = choose([list(clusters)], sampling, clusters)
    assert len(chosen) == 6
    assert len({clusters[i] for i in chosen}) == 2
    assert chosen == sorted(chosen)
