"""What points are judged by: what they were run with, whatever is typed later, unless score.*."""

import copy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import Kvx

from kvx.cli.command import compose
from kvx.data.tokenizer import load_tokenizer
from kvx.engines.kvpress.model import LoadedModel
from kvx.errors import UserError
from kvx.score.settings import judging_of
from kvx.text.reasoning import split

RUN = ("dataset.source.n_examples=20", "dataset.sampling.n_per_bin=2", "dataset.binning.n_bins=1")


def table(name: str) -> Any:
    (path,) = Path("outputs/runs/default/points").glob(f"*/{name}.parquet")
    return pq.read_table(path).to_pandas()


def primary() -> set[str]:
    scores = table("scores")
    return set(scores[scores["primary"]]["metric"])


def test_metrics_and_format_of_the_run_stand_unless_score_says_otherwise(kvx: Kvx) -> None:
    run = (*RUN, "dataset.metrics=[qa_f1,exact_match]", "dataset.answer_format=json")
    assert kvx("run", *run).code == 0
    for later in ((), ("dataset.metrics=[string_match_any]",), ("dataset=niah",)):
        outcome = kvx("score", *later)
        assert outcome.code == 0, outcome.err
        assert primary() == {"qa_f1"}
        assert set(table("scores")["metric"]) == {"qa_f1", "exact_match"}
        assert set(table("failures")["error_type"]) == {"FORMAT_ERROR"}
        told = "points were run with dataset.metrics=[qa_f1,exact_match], which stands"
        assert (told in outcome.err) is (later != ("dataset=niah",))
    assert "nothing to do" in outcome.err
    outcome = kvx("score", "score.metrics=[string_match_any]", "score.answer_format=any")
    assert "1 points scored" in outcome.err
    assert primary() == {"string_match_any"}
    assert len(table("failures")) == 0
    assert "1 points scored" in kvx("score", *run).err  # as it was


def test_what_an_older_kvx_did_not_record_is_what_its_dataset_says() -> None:
    info = {
        "dataset": "gsm8k__fewshot", "metrics": ["numeric"], "answer_format": "number",
        "config": {"decoding": {}},
    }  # fmt: skip
    for today in ("dataset=gsm8k_fewshot", "dataset=recall"):
        assert judging_of(info, compose(today)).until == ("\nQuestion:",)
    own = compose("dataset=gsm8k_fewshot", "dataset.until=[x]")
    assert judging_of(info, own).until == ("x",)
    recorded = {**info, "until": []}
    assert judging_of(recorded, own).until == ()
    assert judging_of(recorded, compose("score.until=[y]")).until == ("y",)
    decoded = {**recorded, "until": ["a"], "config": {"decoding": {"until": ["b"]}}}
    assert judging_of(decoded, own).until == ("b",)
    assert judging_of({**info, "dataset": "mine__x"}, compose()).until == ()


def test_an_unknown_format_to_score_by_is_refused() -> None:
    with pytest.raises(UserError, match=r"score\.answer_format=prose: unknown .*or any for any"):
        compose("score.answer_format=prose")


def test_a_prompt_that_ends_with_an_open_tag_makes_reasoning(kvx: Kvx) -> None:
    run = (*RUN, "dataset.template.answer_prefix=' <think> '")
    assert kvx("run", *run).code == 0
    assert table("requests")["opens_reasoning"].all()
    assert (table("requests")["reasoning_tokens"] > 0).any()
    assert kvx("score", *run).code == 0
    assert set(table("failures")["message"]) == {"only reasoning, no answer"}
    assert set(table("scores")["prediction_normalized"]) == {""}
    assert kvx("score", *run, "score.reasoning=keep").code == 0
    assert set(table("scores")["prediction_normalized"]) != {""}


def test_special_tokens_that_mark_reasoning_stay_in_the_text() -> None:
    """Decoding drops them for Mistral, Cohere and gpt-oss: the answer could not be told."""
    tokenizer = copy.deepcopy(load_tokenizer(compose("model=tiny_recall").model))
    names = ["[THINK]", "[/THINK]", "<|other|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    begin, end, other = tokenizer.convert_tokens_to_ids(names)
    words = [10, 11, 12]
    first, last = tokenizer.decode(words[:2]), tokenizer.decode(words[2:])
    loaded = LoadedModel(None, tokenizer, torch.device("cpu"), frozenset({other}))
    text = loaded.text([begin, *words[:2], end, words[2], other])
    assert text == f"[THINK]{first}[/THINK]{last}"
    assert split(text).answer == last != ""
    plain = [*words, other]
    assert loaded.text(plain) == tokenizer.decode(plain, skip_special_tokens=True)
