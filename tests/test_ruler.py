"""RULER's tasks: what each asks by its definition, and how long its prompts are."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from kvx.analyze.depth_grid import grids
from kvx.analyze.frames import load_experiment
from kvx.cli.command import compose
from kvx.config.schema import Config
from kvx.data.example import Example
from kvx.data.manifest import make_source
from kvx.data.prompt import PromptBuilder
from kvx.data.ruler_tasks.drafts import spread
from kvx.data.ruler_tasks.needles import NOISE
from kvx.data.sources.ruler import TASKS
from kvx.errors import UserError
from kvx.scoring.metrics import metric, resolve
from tests.conftest import Kvx

LIMITS = {"niah": 128, "vt": 30, "cwe": 120, "fwe": 50, "qa": 32}
WORDS = ["fellow", "citizens", "of", "the", "Senate", "and", "House", "state", "union", "strong"]


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(4, 30))).capitalize() + "."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Speeches, and SQuAD's and HotpotQA's files in small."""
    folder, rng = tmp_path_factory.mktemp("ruler"), random.Random(0)
    (folder / "speeches").mkdir()
    for name in "abcdefgh":
        text = " ".join(sentence(rng) for _ in range(200))
        (folder / "speeches" / f"{name}.txt").write_text(text)
    articles = [
        {
            "paragraphs": [
                {
                    "context": f"Article {a}, part {p}. {sentence(rng)} It was built in {a}{p}.",
                    "qas": [
                        {"question": f"When was {a}.{p} built?", "answers": [{"text": f"{a}{p}"}]},
                        {"question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
                for p in range(10, 14)
            ]
        }
        for a in range(100, 140)
    ]
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    hotpot = [
        {
            "question": f"Who wrote work {i}?", "answer": f"author {i}",
            "context": [[f"Title {i}-{j}", [f"Author {i} wrote {j}. ", sentence(rng)]]
                        for j in range(10)],
        }
        for i in range(30)
    ]  # fmt: skip
    (folder / "hotpotqa.json").write_text(json.dumps(hotpot))
    return folder


@pytest.fixture(scope="module")
def tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE with a few merges: words are one to eight tokens."""
    own = tokenizers.ByteLevelBPETokenizer()
    text = (data / "speeches" / "a.txt").read_text()
    own.train_from_iterator([text, NOISE, "special magic numbers VAR = Document"], vocab_size=400)
    return PreTrainedTokenizerFast(tokenizer_object=own._tokenizer)


@cache
def composed(task: str) -> Config:
    return compose("dataset=ruler", f"dataset.task={task}")


Generate = Callable[..., tuple[list[Example], PromptBuilder]]


@pytest.fixture(scope="module")
def generate(data: Path, tokenizer: Any) -> Generate:
    def made(
        task: str, length: int = 3000, n: int = 1, **more: Any
    ) -> tuple[list[Example], PromptBuilder]:
        config = composed(task)
        files = {"haystack": f"{data}/speeches", "path": str(data)}
        own = {**config.dataset.source, **files, "length": length, "n_examples": n, **more}
        builder = PromptBuilder(tokenizer, config, "2026-01-31")
        limit = config.decoding.max_new_tokens
        assert limit == LIMITS[task.split("_")[0]]
        source: Any = make_source(replace(config.dataset, source=own))
        return list(source.examples_for(builder, limit)), builder

    return made


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_and_its_answer_fill_the_length(task: str, generate: Generate) -> None:
    length = 6000 if task.startswith("qa") else 3000
    found, builder = generate(task, length, 6)
    room = length - LIMITS[task.split("_")[0]]
    longest_unit = 180
    for example in found:
        assert room - longest_unit <= builder.parts(example).n_tokens <= room
        prompt = "".join(builder.texts(example))
        text = example.context.lower()
        assert all(answer.lower() in text for answer in example.answers)
        assert example.question in prompt.rpartition(example.context)[2]
    assert len({example.context for example in found}) == 6
    # the first ones are the same however many are asked for
    assert [e.context for e in generate(task, length, 2)[0]] == [e.context for e in found[:2]]
    other, _ = generate(task, length, 2, seed=1)
    assert not {e.context for e in other} & {e.context for e in found}


def test_a_tokenizer_without_a_fast_backend_counts_the_same(tokenizer: Any) -> None:
    builder = PromptBuilder(tokenizer, compose("dataset=ruler_generated"), None)
    texts = [NOISE, "", "VAR ABCDE = 12345 ÄÖ\n"]
    fast = builder.count_tokens(texts)

    class Slow:
        encode = staticmethod(tokenizer.encode)

    builder.tokenizer = Slow()
    assert builder.count_tokens(texts) == fast == [len(builder._encode(text)) for text in texts]


@pytest.mark.parametrize(
    ("task", "keys", "values", "asked", "kind"),
    [
        ("niah_single_1", 1, 1, 1, "numbers"), ("niah_single_2", 1, 1, 1, "numbers"),
        ("niah_single_3", 1, 1, 1, "uuids"), ("niah_multikey_1", 4, 1, 1, "numbers"),
        ("niah_multivalue", 1, 4, 1, "numbers"), ("niah_multiquery", 4, 1, 4, "numbers"),
        ("niah_multikey_2", None, 1, 1, "numbers"), ("niah_multikey_3", None, 1, 1, "uuids"),
    ],
)  # fmt: skip
def test_needles(
    task: str, keys: int | None, values: int, asked: int, kind: str, generate: Generate
) -> None:
    found, builder = generate(task, 4000, 4)
    for example in found:
        pattern = rf"One of the special magic {kind} for (.+?) is: (\S+)\."
        needles = re.findall(pattern, example.context)
        by_key: dict[str, list[str]] = {}
        for key, value in needles:
            by_key.setdefault(key, []).append(value)
        if keys is not None:
            assert len(by_key) == keys
            assert all(len(own) == values for own in by_key.values())
        else:  # nothing but needles
            assert len(by_key) == len(needles) == len(example.context.splitlines()) > 20
        queried = re.split(r", and |, ", example.question)
        assert len(queried) == asked
        assert Counter(example.answers) == Counter(v for key in queried for v in by_key[key])
        plural = asked * values > 1
        prompt = "".join(builder.texts(example))
        noun = f"{'are all' if plural else 'is'} the special magic {kind if plural else kind[:-1]}"
        assert f"What {noun} for {example.question} mentioned in the provided text? " in prompt
        assert prompt.endswith(f"mentioned in the provided text {'are' if plural else 'is'}")
        if task == "niah_single_1":
            lines = example.context.splitlines()
            needle = lines.pop(round(example.meta["depth"] * (len(lines) - 1)))
            assert needle.startswith("One of the special magic")
            assert set(lines) == {NOISE}


def test_needles_stand_where_they_are_asked_to(generate: Generate) -> None:
    depths = [0, 25, 50, 100]
    for task in ("niah_single_1", "niah_single_2", "niah_multikey_2"):
        found, _ = generate(task, 4000, 8, depths=depths)
        for index, example in enumerate(found):
            at = example.context.index(f"for {example.question} is: ")
            before = example.context.rindex("One of the special", 0, at) / len(example.context)
            assert before == pytest.approx(depths[index % 4] / 100, abs=0.06)
            assert example.meta["depth"] == pytest.approx(depths[index % 4] / 100, abs=0.06)
            assert example.meta["asked_depth"] == depths[index % 4] / 100
    with pytest.raises(UserError, match="niah_multivalue has no single needle; use one of niah_s"):
        generate("niah_multivalue", 4000, 1, depths=[50])
    with pytest.raises(UserError, match=r"depths=\[101"):
        generate("niah_single_1", 4000, 1, depths=[101])


@metric(binary=True)
def asks_for_odd(prediction: str, answers: Sequence[str]) -> float:
    """Of the reference alone, so that the expected means are known."""
    return float(int(answers[0]) % 2)


def test_depths_and_lengths_make_a_heat_map(kvx: Kvx) -> None:
    """The embedded model knows none of these words; what counts is where each score stands."""
    outcome = kvx(
        "all", "dataset=ruler_generated", "dataset.length=300,450", "press=knorm", "budget=1.0,0.5",
        "dataset.source.depths=[0,50,100]", "dataset.sampling.n_per_bin=6", "experiment_name=x",
        "dataset.metrics=[tests.test_ruler.asks_for_odd]", "decoding.max_new_tokens=2",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    folder = Path("outputs/runs/x")
    (grid,) = grids(load_experiment(folder, Path("outputs")), Path("outputs"))
    assert (grid.depths, grid.lengths, grid.task) == ([0, 50, 100], [300, 450], "niah_single_1")
    assert [panel.title for panel in grid.panels] == ["knorm, budget 1", "knorm, budget 0.5"]
    manifests = {
        json.loads(file.read_text())["entries"][0]["prompt_tokens"]: file.parent
        for file in Path("outputs/data/processed").glob("*/*/manifest.json")
    }
    for column, n_tokens in enumerate(sorted(manifests)):
        rows = pq.read_table(manifests[n_tokens] / "examples.parquet").to_pylist()
        odd = [int(row["answers"][0]) % 2 for row in rows]
        for panel in grid.panels:
            found = panel.means[:, column].tolist()
            assert found == [(odd[i] + odd[i + 3]) / 2 for i in range(3)]
    assert (folder / "plots" / "needle_depths_niah_single_1.png").stat().st_size > 5000
    assert "](plots/needle_depths_niah_single_1.png)" in (folder / "report.md").read_text()


def test_places_are_distinct_and_in_order() -> None:
    assert spread([0.0, 0.5, 0.99], 4) == [0, 2, 3]
    assert spread([0.5, 0.5, 0.5], 4) == [2, 3, 0]
    assert spread([0.0, 1.0], 2) == [0, 1]


def test_variables_are_those_of_one_chain_of_four_hops(generate: Generate) -> None:
    (example, *_), builder = generate("vt", 4000, 3)
    shot, task = example.context.split("\n\n\n\n")
    assert task.startswith("Memorize and track the chain(s) of variable assignment hidden in the")
    assigned = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?([A-Z]{5}|\d{5})", task)
    value: dict[str, str] = {}
    for name, given in assigned:  # in the order of the text
        value[name] = value.get(given, given)
    assert [n for n, v in value.items() if v == example.question] == list(example.answers)
    assert len(assigned) == 5
    asked = f"assgined the value {example.question}, they are: "
    assert "".join(builder.texts(example)).endswith(asked)
    # the worked example before it, with shorter names and its own answer
    names = re.findall(r"VAR ([A-Z]{3}) = ", shot)
    assert shot.endswith(f", they are: {' '.join(names)}")
    assert len(names) == 5
    assert shot.count(NOISE) == 6  # more would have over 470 tokens


def numbered(text: str) -> list[str]:
    """The words of a list; some have two parts."""
    return re.findall(r"\d+\. (.+?)(?= \d+\. |\n|$)", text)


def test_common_words_are_easier_below_4096_tokens(generate: Generate) -> None:
    for length, often, seldom, shot_often in ((9000, 30, 3, 10), (4000, 6, 1, 3)):
        (example, *_), builder = generate("cwe", length, 2)
        shot, listed = example.context.split("in the list are:")
        answer, listed = listed.split("\nBelow is")
        counts = Counter(numbered(listed))
        assert dict(counts.most_common(10)) == dict.fromkeys(example.answers, often)
        assert {n for word, n in counts.items() if word not in example.answers} == {seldom}
        numbers = list(map(int, re.findall(r"(\d+)\. ", listed)))
        assert numbers == list(range(1, len(numbers) + 1))
        known = Counter(numbered(shot.partition("most often.")[2])).most_common(10)
        assert {word for word, _ in known} == set(numbered(answer))
        assert {n for _, n in known} == {shot_often}
        assert "".join(builder.texts(example)).endswith("most often in the list are:")


def test_frequent_words_fall_with_the_square_of_their_rank(generate: Generate) -> None:
    for example in generate("fwe", 4000, 4)[0]:
        counts = Counter(example.context.split())
        ranked = counts.most_common()
        assert ranked[0][0] == "..."
        assert [word for word, _ in ranked[1:4]] == list(example.answers)
        first = ranked[0][1]
        assert [n for _, n in ranked[1:6]] == [
            pytest.approx(first / (rank * rank), abs=1) for rank in range(2, 7)
        ]
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked[1:])


def test_questions_are_asked_on_their_documents_among_others(generate: Generate) -> None:
    found, _ = generate("qa_1", 3000, 8)
    places = []
    for i, example in enumerate(found):
        texts = re.findall(r"Document \d+:\n(.*)", example.context)
        article, part = 100 + i // 4, 10 + i % 4
        assert example.question == f"When was {article}.{part} built?"
        assert example.answers == (f"{article}{part}",)
        (own,) = (k for k, text in enumerate(texts) if f"{article}, part {part}." in text)
        places.append(own)
        # first the rest of the article, then others
        assert sum(f"Article {article}," in text for text in texts) == 4
        assert len(set(texts)) == len(texts) > 8
        assert [*map(int, re.findall(r"Document (\d+):", example.context))] == list(
            range(1, len(texts) + 1)
        )
    assert len(set(places)) > 4  # RULER's own are all at one place
    assert len({example.cluster for example in found}) == 8
    two, _ = generate("qa_2", 6000, 3)
    assert [e.answers for e in two] == [(f"author {i}",) for i in range(3)]
    for i, example in enumerate(two):
        assert all(f"Title {i}-{j}\nAuthor {i} wrote {j}. " in example.context for j in range(10))


def test_metrics_are_rulers(generate: Generate) -> None:
    """Worked by hand: the share of references in the answer, ignoring case; of QA any."""
    for task in TASKS:
        (name,) = composed(task).dataset.metrics
        metric = resolve([name])[name]
        score = metric(" ABCDE, and 12,\n QRSTU", ["abcde", "QRSTU", "12", "vwxyz"]).value
        assert score == (1.0 if task.startswith("qa") else 0.75)
        assert metric("", ["abcde"]).value == 0


def test_wrong_requests_end_in_one_line(kvx: Kvx, data: Path, generate: Generate) -> None:
    for task, fields, line in (
        ("qa_1", {"path": None}, "dataset.task=qa_1: asks about squad's documents, which are not "
         "generated; set dataset.source.path to a folder with squad.json or dev-v2.0.json, or take "
         "dataset=ruler_generated, which has the other 11 tasks"),
        ("qa_2", {"path": f"{data}/speeches"}, f"{data}/speeches: dataset.task=qa_2 needs "
         "hotpotqa.json or hotpot_dev_distractor_v1.json in dataset.source.path"),
        ("qa_2", {"path": f"{data}/squad.json"}, f"{data}/squad.json: not hotpotqa's file"),
        ("qa_2", {"n_examples": 31}, "dataset.source.n_examples: "),
        ("niah_single_2", {"haystack": "none"}, "none: no such file or directory; run `make"),
        ("vt", {"length": 30}, "dataset.length=30: answers alone may have 30 tokens"),
        ("vt", {"length": 200}, "dataset.length: the shortest prompt of this task is "),
        ("vt", {"depths": [50]}, "dataset.source.depths: dataset.task=vt has no single needle"),
    ):  # fmt: skip
        with pytest.raises(UserError) as found:
            generate(task, **{"length": 40_000, **fields})
        assert str(found.value).startswith(line)
        assert "\n" not in str(found.value)
    for argument, line in (
        ("dataset.task=niah_4", "dataset.task=niah_4: no task of dataset=ruler; use all, or one"),
        ("dataset.length=999999", "dataset.length=999999: model=tiny_recall takes at most 8192"),
        ("dataset.task=all", "dataset.task=qa_1: asks about squad's documents"),  # before any data
    ):
        outcome = kvx(
            "prepare", "dataset=ruler", argument, f"dataset.source.haystack={data}/speeches"
        )
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
        assert line in outcome.err
