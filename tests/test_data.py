"""Sources, bins and manifests: what is selected, and that it stays selected."""

import json
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.cli.command import compose
from kvx.config.dataset import BinningConfig, BinStrategy, SampleStrategy, SamplingConfig
from kvx.data.binning import bin_edges, bin_of, choose
from kvx.data.manifest import manifest_key
from kvx.data.sources.gsm8k import Gsm8kSource
from kvx.data.sources.local import LocalSource
from kvx.data.sources.longbench import LongBenchSource
from kvx.data.sources.narrativeqa import NarrativeQASource
from kvx.data.sources.niah import NiahSource
from kvx.data.sources.recall import RecallSource
from kvx.errors import UserError
from tests.conftest import Kvx

PROCESSED = Path("outputs/data/processed/recall__kv")


@given(st.lists(st.integers(1, 5000), min_size=8, max_size=60, unique=True), st.integers(1, 8))
def test_quantile_bins_cover_everything_about_evenly(lengths: list[int], n_bins: int) -> None:
    edges = bin_edges(lengths, BinningConfig(n_bins=n_bins))
    assert all(a < b for a, b in pairwise(edges))
    bins = [bin_of(length, edges) for length in lengths]
    counts = Counter(bins)
    assert None not in counts
    assert len(counts) == n_bins
    assert max(counts.values()) - min(counts.values()) <= 1


@given(st.lists(st.integers(1, 12), min_size=1, max_size=60), st.integers(1, 12))
def test_bins_are_never_empty_however_many_lengths_are_equal(lengths: list[int], n: int) -> None:
    binning = BinningConfig(n_bins=n)
    if len(set(lengths)) < n:
        with pytest.raises(UserError, match="distinct context lengths"):
            bin_edges(lengths, binning)
        return
    edges = bin_edges(lengths, binning)
    assert {bin_of(length, edges) for length in lengths} == set(range(n))


def test_fixed_edges_leave_out_what_is_outside() -> None:
    edges = bin_edges([], BinningConfig(strategy=BinStrategy.edges, edges=[100, 200, 400]))
    assert [bin_of(n, edges) for n in (99, 100, 199, 200, 400, 401)] == [None, 0, 0, 1, 1, None]
    with pytest.raises(UserError, match="ascending"):
        bin_edges([], BinningConfig(strategy=BinStrategy.edges, edges=[200, 100]))


def test_sampling_is_seeded_ordered_and_focused() -> None:
    ids = [[f"a{i}" for i in range(50)], [f"b{i}" for i in range(50)], ["c0", "c1"]]
    once = choose(ids, SamplingConfig(n_per_bin=5))
    assert once == choose(ids, SamplingConfig(n_per_bin=5))
    assert once != choose(ids, SamplingConfig(n_per_bin=5, seed=1))
    assert [len(c) for c in once] == [5, 5, 2]
    assert once[0] == sorted(once[0], key=ids[0].index)
    focus = SamplingConfig(
        strategy=SampleStrategy.focus_transition, n_per_bin=5, focus_bins=[1], focus_n_per_bin=20
    )
    assert [len(c) for c in choose(ids, focus)] == [5, 20, 2]
    with pytest.raises(UserError, match="focus_bins"):
        choose(ids, SamplingConfig(strategy=SampleStrategy.focus_transition, focus_bins=[7]))


def test_recall_hides_each_answer_once_in_its_context() -> None:
    for example in RecallSource(n_examples=30).examples():
        (answer,) = example.answers
        assert f"{example.question} {answer} ." in example.context
        assert example.context.split().count(example.question) == 1
        assert 2 <= len(answer.split()) <= 4


def test_niah_needles_are_whole_unique_and_evenly_deep(tmp_path: Path) -> None:
    sentence = "The state of the union is strong and our trade with all nations grows daily. "
    (tmp_path / "a.txt").write_text(sentence * 300)
    examples = list(NiahSource(str(tmp_path), n_examples=40, max_words=2000).examples())
    depths = sorted(e.meta["depth"] for e in examples)
    assert all(abs(d - (i + 0.5) / 40) < 0.05 for i, d in enumerate(depths))
    assert len({e.question for e in examples}) == 40
    for e in examples:
        needle = f"One of the special magic numbers for {e.question} is: {e.answers[0]}."
        assert e.context.count(needle) == 1
    with pytest.raises(UserError, match="max_words"):
        list(NiahSource(str(tmp_path), max_words=100_000).examples())


def test_needles_in_one_speech_are_a_cluster_and_older_manifests_keep_their_key(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"It was said in speech {name} at length. " * 400)
    together, apart = (
        list(NiahSource(str(tmp_path), n_examples=12, max_words=2000, **fields).examples())
        for fields in ({}, {"cluster": "example"})
    )
    assert {e.cluster for e in together} == {"a", "b"}
    assert all(f"speech {e.cluster} at" in e.context for e in together)
    assert [e.cluster for e in apart] == [e.example_id for e in apart]
    assert [replace(e, cluster="") for e in together] == [replace(e, cluster="") for e in apart]
    by_default, by_text, as_before = (
        manifest_key(compose("dataset=niah", *argument), "niah-1-x")
        for argument in ((), ("dataset.source.cluster=text",), ("dataset.source.cluster=example",))
    )
    assert by_default == by_text != as_before
    fields = {"n_examples": 400, "seed": 0}
    assert NiahSource.identity_of({**fields, "cluster": "example"}) == fields
    with pytest.raises(UserError, match="cluster=needle: must be text or example"):
        NiahSource(str(tmp_path), cluster="needle")


def test_narrativeqa_keeps_the_right_story_among_distractors(tmp_path: Path) -> None:
    rows = [
        {"question": f"q{i}", "answer": str([f"x{i}", "y"]), "passage": f"passage {i // 2}"}
        for i in range(20)
    ]
    path = tmp_path / "n.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    examples = list(NarrativeQASource(str(path), n_examples=12, max_distractors=3).examples())
    assert len(examples) == 12
    for e in examples:
        row = rows[int(e.example_id.split("-")[1])]
        assert e.answers == (row["answer"][2:4].strip("'") or "", "y") or e.answers[1] == "y"
        assert f"Story {e.meta['story']}:\n{row['passage']}" in e.context
        assert e.context.count("Story ") == e.meta["n_distractors"] + 1
    assert len({e.cluster for e in examples}) < len(examples)  # questions on one story: a cluster


def test_gsm8k_never_asks_its_worked_examples(tmp_path: Path) -> None:
    docs = [
        {"doc": {"question": f"q{i}?", "answer": f"so\n#### {i}", "short_answer": str(i)}}
        for i in range(130)
    ]
    path = tmp_path / "g.jsonl"
    path.write_text("\n".join(map(json.dumps, docs)))
    examples = list(Gsm8kSource(str(path), min_shots=2, max_shots=5).examples())
    assert [e.question for e in examples] == [f"q{i}?" for i in range(30)]
    asked = {e.question for e in examples}
    for e in examples:
        shots = [s.split("\n")[0].removeprefix("Question: ") for s in e.context.split("\n\n")]
        assert 2 <= len(shots) <= 5
        assert not asked & set(shots)


def test_longbench_reads_its_own_jsonl_shape(tmp_path: Path) -> None:
    row = {
        "input": "Who?", "context": "A long book.", "answers": ["Ann", "she"], "length": 3,
        "dataset": "narrativeqa", "language": "en", "all_classes": None, "_id": "abc",
    }  # fmt: skip
    (tmp_path / "narrativeqa.jsonl").write_text(json.dumps(row) + "\n")
    (example,) = LongBenchSource("narrativeqa", path=str(tmp_path)).examples()
    assert (example.example_id, example.question) == ("narrativeqa-abc", "Who?")
    assert example.answers == ("Ann", "she")
    with pytest.raises(UserError, match=r"qasper\.jsonl: no such file"):
        LongBenchSource("qasper", path=str(tmp_path)).revision()


def test_submission_runs_on_a_local_longbench(kvx: Kvx, tmp_path: Path) -> None:
    words = [e.context for e in RecallSource(n_examples=12).examples()]
    rows = [
        {"input": "who?", "context": w, "answers": ["nobody"], "length": 9, "_id": f"{i}"}
        for i, w in enumerate(words)
    ]
    (tmp_path / "narrativeqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    outcome = kvx("all", "experiment=submission", "model=tiny_recall",
                  f"dataset.source.path={tmp_path}", "decoding.max_new_tokens=4")  # fmt: skip
    assert outcome.code == 0, outcome.err
    manifest = next(Path("outputs/data/processed/longbench__narrativeqa").glob("*/manifest.json"))
    assert [b["n_chosen"] for b in json.loads(manifest.read_text())["bins"]] == [2] * 5
    assert "**Full cache at the floor.**" in Path("outputs/runs/submission/details.md").read_text()


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_local_files_with_a_field_mapping(tmp_path: Path, suffix: str) -> None:
    import pandas as pd

    frame = pd.DataFrame(
        {"passage": ["one", "two"], "q": ["a?", "b?"], "gold": ['["x", "y"]', "z"]}
    )
    path = tmp_path / f"data.{suffix}"
    if suffix == "jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif suffix == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    fields = {"context": "passage", "question": "q", "answers": "gold"}
    first, second = LocalSource(str(path), fields).examples()
    assert (first.context, first.question, first.answers) == ("one", "a?", ("x", "y"))
    assert (second.example_id, second.answers) == ("row-00002", ("z",))
    with pytest.raises(UserError, match="unknown contxt"):
        LocalSource(str(path), {"contxt": "passage"})


def test_a_manifest_is_made_once_and_refused_when_changed(kvx: Kvx) -> None:
    assert kvx("prepare").code == 0
    (manifest,) = PROCESSED.glob("*/manifest.json")
    before = manifest.stat().st_mtime_ns
    assert kvx("prepare").code == 0
    assert manifest.stat().st_mtime_ns == before
    text = manifest.read_text()
    manifest.write_text(text.replace('"bin": 0', '"bin": 1', 1))
    edited = kvx("prepare")
    assert edited.code == 2
    assert "manifest.json: changed since it was made" in edited.err
    manifest.write_text(text)
    (manifest.parent / "examples.parquet").write_bytes(b"other")
    assert "missing or changed since the manifest was made" in kvx("prepare").err


def test_a_manifest_of_another_tokenizer_is_refused(kvx: Kvx) -> None:
    from kvx.identity.hashing import sha256_text

    assert kvx("prepare").code == 0
    (manifest,) = PROCESSED.glob("*/manifest.json")
    body = json.loads(manifest.read_text())
    body["tokenizer_hash"], body["tokenizer"] = "0" * 12, "another"
    del body["sha256"]
    body["sha256"] = sha256_text(json.dumps(body, sort_keys=True))
    manifest.write_text(json.dumps(body))
    outcome = kvx("run")
    assert outcome.code == 2
    assert "made for the tokenizer of another" in outcome.err


def test_another_sampling_is_another_manifest(kvx: Kvx) -> None:
    assert kvx("prepare").code == 0
    assert kvx("prepare", "dataset.sampling.n_per_bin=3").code == 0
    assert len(list(PROCESSED.glob("*/manifest.json"))) == 2


def test_edges_that_hold_nothing_are_refused_and_what_is_outside_does_not_matter(
    kvx: Kvx,
) -> None:
    edges = "dataset.binning.strategy=edges"
    empty = kvx("prepare", edges, "dataset.binning.edges=[90000,100000]")
    assert empty.code == 2
    assert "no examples inside dataset.binning.edges" in empty.err
    short = ("dataset.binning.edges=[0,500]", "model.max_context_tokens=600")
    assert kvx("prepare", *short).code == 2  # without edges as the strategy, some are too long
    assert kvx("prepare", edges, *short).code == 0


def test_csv_with_a_long_context_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    text = "word " * 60_000
    path.write_text(f'context,question,answers\n"{text}",why?,because\n', encoding="utf-8-sig")
    (example,) = LocalSource(str(path)).examples()
    assert example.context == text


@pytest.mark.parametrize("name", ["latin.jsonl", "cut.jsonl.gz"])
def test_files_that_are_not_what_their_name_says_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x1f\x8b\x08 not gzip" if name.endswith("gz") else b'{"a": "caf\xe9"}')
    with pytest.raises(UserError, match=name):
        list(LocalSource(str(path)).examples())


def test_questions_on_one_context_form_a_cluster(tmp_path: Path) -> None:
    row = {"context": "same", "question": "q?", "answers": ["a"]}
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps({**row, "question": q}) for q in "abc"))
    assert len({e.cluster for e in LocalSource(str(path)).examples()}) == 1


def test_a_model_is_known_by_its_weights_not_by_its_name_or_path(tmp_path: Path) -> None:
    import shutil

    from kvx.config.folders import package_dir
    from kvx.config.language_model import ModelConfig
    from kvx.data.tokenizer import model_hash

    source = package_dir() / "assets" / "tiny_recall"
    for name in ("one", "two", "three"):
        shutil.copytree(source, tmp_path / name)
    weights = tmp_path / "three" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[len(changed) // 2] ^= 1
    weights.write_bytes(bytes(changed))
    hashes = [model_hash(ModelConfig(n, str(tmp_path / n))) for n in ("one", "two", "three")]
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_field_mapping_of_the_readme_works_as_typed(kvx: Kvx, tmp_path: Path) -> None:
    words = [e.context for e in RecallSource(n_examples=6).examples()]
    path = tmp_path / "my.jsonl"
    rows = [{"passage": w, "question": "q", "gold": ["x"]} for w in words]
    path.write_text("\n".join(map(json.dumps, rows)))
    fields = "dataset.source.fields={context: passage, answers: gold}"
    data = ("dataset=local", f"dataset.source.path={path}", "dataset.binning.n_bins=2")
    assert kvx("prepare", *data, fields).code == 0
    assert kvx("prepare", *data).code == 2
    one_by_one = [f"dataset.source.fields.{a}" for a in ("context=passage", "answers=gold")]
    assert kvx("prepare", *data, *one_by_one).code == 0
