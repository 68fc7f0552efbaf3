"""Benchmarks that ask several questions on one context: what they ask, how they are scored."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Kvx

from kvx.data.example import Example
from kvx.data.sources.infinitebench import InfiniteBenchSource
from kvx.data.sources.local import LocalSource
from kvx.data.sources.math500 import Math500Source
from kvx.data.sources.mrcr import MrcrSource
from kvx.data.sources.narrativeqa import NarrativeQASource
from kvx.data.sources.qasper import QasperSource
from kvx.data.sources.scbench import ScbenchSource
from kvx.errors import UserError
from kvx.scoring.metrics import METRICS


def score(name: str, prediction: str, *answers: str, **row: Any) -> float:
    return METRICS.get(name, "dataset.metrics")(prediction, answers, row).value


def one_context_each(examples: list[Example]) -> dict[str, list[Example]]:
    """The examples by cluster; each has one context, and questions that differ."""
    clusters: dict[str, list[Example]] = {}
    for example in examples:
        clusters.setdefault(example.cluster, []).append(example)
    for asked in clusters.values():
        assert len({e.context for e in asked}) == 1
        assert len({e.question for e in asked}) == len(asked)
    return clusters


def written(path: Path, document: Any) -> str:
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture
def speeches(tmp_path: Path) -> Path:
    folder = tmp_path / "speeches"
    folder.mkdir()
    for name in "ab":
        words = [f"{name}{i}{'.' if i % 9 == 8 else ''}" for i in range(900)]
        (folder / f"{name}.txt").write_text(" ".join(words))
    return folder


def test_infinitebench_hides_its_answers_at_all_depths() -> None:
    for task in ("passkey", "number_string"):
        found = list(InfiniteBenchSource(task, 20, 10, 40).examples())
        for example in found:
            (key,) = example.answers
            assert example.context.count(key) == 2
            assert len(key) == (5 if task == "passkey" else 10)
        at = [e.context.index(e.answers[0]) / len(e.context) for e in found]
        assert min(at) < 0.1
        assert max(at) > 0.9
    for example in InfiniteBenchSource("kv_retrieval", 5, 8, 20).examples():
        data = json.loads(example.context.removeprefix("JSON data:\n"))
        key = re.findall(r'Key: "(.+)"', example.question)[0]
        assert example.answers == (data[key],)
    for example in InfiniteBenchSource("math_find", 40, 7, 60).examples():
        numbers = json.loads(example.context.split("\n\n")[1])
        kind = re.findall(r"The (.+) number of", example.question)[0]
        ordered = sorted(numbers)
        rank = {"largest": -1, "second largest": -2, "third largest": -3, "smallest": 0,
                "second smallest": 1, "third smallest": 2, "median": len(ordered) // 2}  # fmt: skip
        assert example.answers == (str(ordered[rank[kind]]),)
        assert len(numbers) % 2 == 1
        assert numbers.count(ordered[rank[kind]]) == 1 or kind == "median"


def test_scbench_asks_every_question_on_the_same_context() -> None:
    for task in ("kv", "prefix_suffix", "mf", "passkey"):
        source = ScbenchSource(task, n_contexts=3, min_items=20, max_items=30)
        examples = list(source.examples())
        assert examples == list(source.examples())
        clusters = one_context_each(examples)
        assert [len(asked) for asked in clusters.values()] == [5, 5, 5]
        assert all(e.answers[0] in e.context for e in examples)
    first = next(iter(ScbenchSource("mf", n_contexts=1, min_items=20, max_items=30).examples()))
    lead, numbers = first.context.split("\n\n")
    assert first.question == f"What is {lead.split('. ')[1][:-5].replace('The', 'the')}?\n\n{lead}"
    assert json.loads(numbers)


def test_scbench_files_are_asked_in_full(tmp_path: Path) -> None:
    turns = [{"input": "Key: a", "answer": "x1"}, {"input": "Key: b", "answer": "x2"}]
    file = tmp_path / "scbench_kv.jsonl"
    file.write_text(
        json.dumps({"id": 7, "context": '{"a": "x1", "b": "x2"}', "multi_turns": turns})
    )
    found = list(ScbenchSource("kv", str(file)).examples())
    assert [(e.example_id, e.question, e.answers) for e in found] == [
        ("7-0", "Key: a", ("x1",)), ("7-1", "Key: b", ("x2",))
    ]  # fmt: skip
    assert found[0].cluster == found[1].cluster
    assert next(iter(LocalSource(str(file)).examples())).question == "Key: a"


def test_mrcr_asks_for_each_equal_answer(speeches: Path) -> None:
    found = list(MrcrSource(str(speeches), 4, 3, 4, 12, 20).examples())
    for asked in one_context_each(found).values():
        what = re.findall(r"\) (.+?)\. Do not", asked[0].question)[0]
        told = re.findall(rf"User: Write a {what}\n\nAssistant: (.+)", asked[0].context)
        for rank, (example, answer) in enumerate(zip(asked, told, strict=True), 1):
            key = example.meta["random_string_to_prepend"]
            assert re.search(rf"Prepend {key} to the {rank}(st|nd|rd) ", example.question)
            assert example.answers == (key + answer,)


def test_mrcr_files_are_conversations(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Write a poem"}, {"role": "assistant", "content": "Oh"},
                {"role": "user", "content": "Prepend k9 to the 1st (1 indexed) poem."}]  # fmt: skip
    row = {"prompt": json.dumps(messages), "answer": "k9Oh", "random_string_to_prepend": "k9"}
    file = tmp_path / "2needle.jsonl"
    file.write_text(json.dumps(row))
    (found,) = LocalSource(str(file)).examples()
    assert found.context == "User: Write a poem\n\nAssistant: Oh"
    assert found.question == "Prepend k9 to the 1st (1 indexed) poem."
    assert found.meta == {"random_string_to_prepend": "k9"}


def test_qasper_has_all_questions_and_every_annotators_answer(tmp_path: Path) -> None:
    def answers(*said: dict[str, Any]) -> list[dict[str, Any]]:
        empty = {"unanswerable": False, "extractive_spans": [], "yes_no": None,
                 "free_form_answer": ""}  # fmt: skip
        return [{"answer": {**empty, **own}} for own in said]

    questions = [
        ("q1", answers({"extractive_spans": ["BERT", "ELMo"]}, {"free_form_answer": "two models"})),
        ("q2", answers({"yes_no": False}, {"unanswerable": True})),
    ]
    sections = [{"section_name": "Intro", "paragraphs": ["One.", "Two."]}]
    paper = {"title": "T", "abstract": "A", "full_text": sections}
    qas = [{"question": f"{i}?", "question_id": i, "answers": a} for i, a in questions]
    found = list(
        QasperSource(written(tmp_path / "q.json", {"p": {**paper, "qas": qas}})).examples()
    )
    assert [e.answers for e in found] == [("BERT, ELMo", "two models"), ("No", "Unanswerable")]
    assert found[0].meta == {"answer_types": ["extractive", "abstractive"]}
    assert found[0].context == "T\n\nA\n\nIntro\nOne.\nTwo."
    assert list(one_context_each(found)) == ["p"]
    columns = {"question": ["1?"], "question_id": ["q1"], "answers": [{"answer": [
        {"unanswerable": True, "extractive_spans": [], "yes_no": None, "free_form_answer": ""}
    ]}]}  # fmt: skip
    row = {**paper, "id": "p", "full_text": {"section_name": ["Intro"], "paragraphs": [["One."]]},
           "qas": columns}  # fmt: skip
    (hub,) = QasperSource(written(tmp_path / "rows.jsonl", row)).examples()
    assert (hub.answers, hub.context) == (("Unanswerable",), "T\n\nA\n\nIntro\nOne.")


def test_squad_2_asks_what_has_no_answer_if_told_to(tmp_path: Path) -> None:
    qas = [{"id": "a", "question": "who?", "answers": [{"text": "Bo"}], "is_impossible": False},
           {"id": "b", "question": "why?", "answers": [], "is_impossible": True}]  # fmt: skip
    articles = [{"title": "t", "paragraphs": [{"context": "Bo came.", "qas": qas}]}]
    file = written(tmp_path / "dev-v2.0.json", {"version": "v2.0", "data": articles})
    assert [e.example_id for e in LocalSource(file).examples()] == ["a"]
    found = list(LocalSource(file, unanswerable="unanswerable").examples())
    assert [e.answers for e in found] == [("Bo",), ("unanswerable",)]
    assert len(one_context_each(found)) == 1


def test_narrativeqa_by_story_shares_a_context(tmp_path: Path) -> None:
    file = tmp_path / "stories.jsonl"
    rows = [{"question": f"{s}{q}?", "answer": ["x"], "passage": f"Story {s} is long."}
            for q in range(4) for s in "abc"]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    found = list(NarrativeQASource(str(file), 6, max_distractors=1, per_story=True).examples())
    clusters = one_context_each(found)
    assert [len(asked) for asked in clusters.values()] == [4, 4]  # whole stories


def test_math500_is_asked_behind_solved_problems_or_alone(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    rows = [{"problem": f"{i}+1?", "solution": f"\\boxed{{{i + 1}}}", "answer": str(i + 1),
             "subject": "Algebra"} for i in range(55)]  # fmt: skip
    file.write_text("\n".join(map(json.dumps, rows)))
    behind = list(Math500Source(str(file)).examples())
    assert len(behind) == 5
    assert behind[3].context.startswith("Problem: ")
    assert (behind[3].question, behind[3].answers) == ("Problem: 3+1?", ("4",))
    alone = list(Math500Source(str(file), min_shots=0, max_shots=0).examples())
    assert [e.context for e in alone[:2]] == ["Problem: 0+1?", "Problem: 1+1?"]
    assert len(alone) == 55


@pytest.mark.parametrize(
    ("metric", "prediction", "answer", "value"),
    [
        # InfiniteBench's passkey and number_string: the first run of digits
        ("first_integer", "The key is 01234.", "01234", 1),
        ("first_integer", "1234", "01234", 0),
        ("first_integer", "12,345", "12345", 0),
        ("first_integer", "no 7, but 12345", "12345", 0),
        ("first_integer", "", "12345", 0),
        # math_find: the first number, without its sign
        ("first_number", "It is 007", "7", 1),
        ("first_number", "-7", "7", 1),
        ("first_number", "7.0", "7", 0),
        ("first_number", "7", "7.0", 1),
        ("first_number", "1,000", "1000", 0),
        ("first_number", "9" * 400, "7", 0),
        # SCBench's: its fraction is cut
        ("first_number_cut", "7.9", "7", 1),
        ("first_number_cut", "none", "7", 0),
        # kv_retrieval: a word once punctuation is blanked; SCBench: anywhere
        ("word_contained", '{"k": "ab-1"}.', "ab-1", 1),
        ("word_contained", "xab-1", "ab-1", 0),
        ("word_contained", "AB-1", "ab-1", 0),
        ("contained", "xab-1", "ab-1", 1),
        ("contained", "AB-1", "ab-1", 0),
        # SQuAD 2: no answer is right or wrong as a whole
        ("squad_f1", "Unanswerable.", "unanswerable", 1),
        ("squad_f1", "it is unanswerable", "unanswerable", 0),
        ("squad_f1", "the red fox", "fox", 2 / 3),
        # MATH-500
        ("math_equal", r"so \boxed{\frac12}", r"\frac{1}{2}", 1),
        ("math_equal", r"\boxed{0.5}", r"\frac{1}{2}", 1),
        ("math_equal", r"\boxed{\text{east}}", r"\text{east}", 1),
        ("math_equal", "The answer is 12.", "12", 1),
        ("math_equal", r"\boxed{3} and no, \boxed{4}", "3", 0),
        ("math_equal", r"\boxed{(1, 2]}", "(1,2]", 1),
        ("math_equal", "I do not know", "12", 0),
    ],
)
def test_scores_on_worked_cases(metric: str, prediction: str, answer: str, value: float) -> None:
    assert score(metric, prediction, answer) == pytest.approx(value)


def test_mrcr_is_zero_without_its_prefix() -> None:
    row = {"random_string_to_prepend": "k9"}
    assert score("mrcr_ratio", "k9Oh night", "k9Oh night", **row) == 1
    assert score("mrcr_ratio", "Oh night", "k9Oh night", **row) == 0
    assert score("mrcr_ratio", "k9Oh", "k9Oh night", **row) == pytest.approx(2 * 2 / (2 + 8))


PLAIN = {"context": "c", "question": "q", "answers": ["two words"]}
NEEDLES = {"id": "0401", "needle": "{CHAR} lives", "questions": {"onehop": "?"}, "tests": {}}


def test_wrong_data_is_refused_in_one_line(
    kvx: Kvx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = f"dataset.source.path={written(tmp_path / 'b.jsonl', PLAIN)}"
    cases = [
        (["dataset=scbench", "dataset.task=vt"], "no task of dataset=scbench; use all, or one of"),
        (["dataset=local", "dataset.metrics=[mrcr_ratio]", rows],
         "no random_string_to_prepend in its row, which dataset.metrics=mrcr_ratio needs"),
        (["dataset=local", "dataset.metrics=[word_contained]", rows],
         "reference 'two words' is not one word once its punctuation is blanked"),
        (["dataset=math500"], "the hub did not give test.jsonl"),
    ]  # fmt: skip
    for arguments, said in cases:
        done = kvx("prepare", *arguments)
        assert (done.code, said in done.err) == (2, True), (arguments, done.err)
        assert len(done.err.strip().splitlines()) == 1, done.err


def test_sources_say_what_is_wrong_with_their_data(tmp_path: Path) -> None:
    plain, needles = (
        written(tmp_path / name, row) for name, row in (("b.jsonl", PLAIN), ("d.jsonl", NEEDLES))
    )
    other = written(tmp_path / "a", PLAIN)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: ScbenchSource("kv", other), "unknown file type"),
        (lambda: ScbenchSource("kv", plain), "'multi_turns': expected a list"),
        (lambda: ScbenchSource("passkey", n_questions=17), "has at most 16"),
        (lambda: InfiniteBenchSource("x"), "choose from passkey, number_string"),
        (lambda: InfiniteBenchSource("passkey", min_items=0), "min_items=0: must be"),
        (lambda: MrcrSource(f"{tmp_path}/no"), "run `make assets`"),
        (lambda: LocalSource(plain, layout="mrcr"), "'prompt': expected a list of objects"),
        (lambda: QasperSource(plain), "not QASPER's layout: no 'title'"),
        (lambda: LocalSource(needles), "a NoLiMa needle set"),
        (lambda: Math500Source(plain), "no problem; it has context"),
        (lambda: Math500Source(hub_revision="main"), "name a commit of"),
    ]
    for make, said in cases:
        with pytest.raises(UserError, match=re.escape(said)):
            list(make().examples())
