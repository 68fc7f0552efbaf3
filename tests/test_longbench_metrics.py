"""LongBench's metrics on cases worked by hand, with what its own definitions make of them."""

import json
from pathlib import Path

import pytest
from conftest import Kvx

from kvx.errors import UserError
from kvx.scoring.metrics import METRICS, measured

M = METRICS.built_in
TREC = {"all_classes": ["number", "other number", "date", "some other number", "city"]}


@pytest.mark.parametrize(
    ("name", "prediction", "answers", "value"),
    [
        # the first line alone counts, line breaks before it do not; a blank is a line of its own
        ("qa_f1_first_line", "\n\nParis\nQuestion: Where?", ["Paris"], 1.0),
        ("qa_f1_first_line", " \nParis", ["Paris"], 0.0),
        ("qa_f1_first_line", "Paris, I think\nParis", ["Lyon", "Paris"], 0.5),
        ("qa_f1", "\n\nParis\nQuestion: Where?", ["Paris"], 0.5),
        ("rouge_l_first_line", "\nA b c\nd e", ["A b c"], 1.0),
        # no reference is no match; of several the best counts
        ("qa_f1", "Paris", [], 0.0),
        ("rouge_l", "Paris", [], 0.0),
        ("count", "3", [], 0.0),
        ("code_similarity", "x", [], 0.0),
        ("rouge_l", "a b", ["c", "a b c d", "a x"], 2 / 3),
        # ROUGE-L: words are what spaces separate, in their case; empty texts score 0
        ("rouge_l", "The cat sat", ["the cat sat"], 2 / 3),
        ("rouge_l", "", ["a"], 0.0),
        ("rouge_l", "...", ["a"], 0.0),
        ("rouge_l", "b a", ["a b"], 0.5),           # one word of two in order
        ("rouge_l", "b. a", ["a b"], 1.0),          # as sentences, each is found
        ("rouge_l", "a b c. a b c. a b c", ["a b c"], 1.0),  # a loop is not seen
        # counting: numbers are runs of digits, and each one named takes its share
        ("count", "There are 12 paragraphs.", ["12"], 1.0),
        ("count", "12 of 30, so 12", ["12"], 2 / 3),
        ("count", "1,024", ["1024"], 0.0),
        ("count", "1,024", ["24"], 0.0),
        ("count", "none", ["12"], 0.0),
        ("count", "012", ["12"], 0.0),
        # retrieval: "Paragraph 1" is not in "Paragraph 12"
        ("retrieval", "Paragraph 12", ["Paragraph 12"], 1.0),
        ("retrieval", "Paragraph 12", ["Paragraph 1"], 0.0),
        ("retrieval", "Paragraph 3, 12 or 5", ["Paragraph 12"], 1 / 3),
        ("retrieval", "Paragraph twelve", ["Paragraph 12"], 0.0),
        ("retrieval", "7", ["Paragraph 12", "Paragraph 7"], 1.0),
        ("retrieval_zh", "段落12和段落3", ["段落12"], 0.5),
        ("retrieval_zh", "Paragraph 12", ["段落12"], 1.0),
        # code: the first line without backtick, # or //, be it blank; steps of 0.01
        ("code_similarity", "\n\nreturn x", ["return x"], 1.0),
        ("code_similarity", "```python\n# note\nreturn x\nreturn y", ["return x"], 1.0),
        ("code_similarity", "x = 1  # one\nreturn x", ["x = 1"], 0.15),  # of "return x"
        ("code_similarity", "   \nreturn x", ["return x"], 0.18),
        ("code_similarity", "// only\n# comments", ["return x"], 0.0),
        ("code_similarity", "abcd", ["bcda"], 0.75),  # 3 of 4 in order; a tie of blocks
        # Chinese: words of jieba, no punctuation
        ("qa_f1_zh", "北京大学。", ["北京大学"], 1.0),
        ("qa_f1_zh", "我爱北京", ["北京"], 0.5),
        ("qa_f1_zh", "。", ["北京"], 0.0),
        ("rouge_l_zh", "我爱北京", ["北京"], 0.5),
        # v2's choice: in brackets first, then the bare letter; nothing else is an answer
        ("multiple_choice", "The correct answer is (B).", ["B"], 1.0),
        ("multiple_choice", "**The correct answer is B**", ["B"], 1.0),
        ("multiple_choice", "The correct answer is: B", ["B"], 0.0),
        ("multiple_choice", "The correct answer is A ... The correct answer is (B)", ["B"], 1.0),
        ("multiple_choice", "(B)", ["B"], 0.0),
        ("multiple_choice", "The correct answer is E", ["B"], 0.0),
        ("multiple_choice", "The correct answer is Because", ["B"], 1.0),
    ],
)  # fmt: skip
def test_a_worked_case(name: str, prediction: str, answers: list[str], value: float) -> None:
    assert M[name](prediction, answers).value == pytest.approx(value, abs=2e-8)


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("It is a date.", "date", 1.0),
        ("date or city", "date", 0.5),
        ("city", "date", 0.0),
        ("", "date", 0.0),
        ("Date", "date", 0.0),
        # "number" is part of "other number": where that is the answer, it does not count ...
        ("other number", "other number", 1.0),
        # ... and where "number" is the answer, "other number" does, as a wrong class
        ("other number", "number", 0.5),
        # of two such names in a row LongBench drops the first only
        ("some other number", "some other number", 0.5),
    ],
)
def test_a_class_inside_another(prediction: str, reference: str, value: float) -> None:
    assert M["classification"](prediction, [reference], TREC).value == value
    first_line = M["classification_first_line"](f"\n{prediction}\ncity", [reference], TREC)
    assert first_line.value == value


def test_the_best_class_of_several_references_counts() -> None:
    assert M["classification"]("date or city", ["number", "date"], TREC).value == 0.5
    assert M["classification"]("date", [], TREC).value == 0.0


def test_rouge_of_a_text_without_a_full_stop_is_no_matter_of_pythons_stack() -> None:
    """LongBench scores 0 where the package's recursion ends; the definition does not."""
    words = [f"w{i}" for i in range(1500)]
    for space in (" ", "\n", " \t "):
        value = M["rouge_l"](space.join(words), ["w0 x"]).value
        assert value == pytest.approx(2 / (1500 + 2))


@pytest.mark.parametrize(
    ("name", "answers", "said"),
    [
        ("retrieval", ["12"], "no 'Paragraph <number>' in its reference '12'"),
        ("retrieval_zh", ["Paragraph 12"], "no '段落<number>' in its reference 'Paragraph 12'"),
        ("count", ["twelve"], "no plain number in its reference 'twelve'"),
        ("count", ["1,024"], "no plain number in its reference '1,024'"),
        ("multiple_choice", ["Paris"], "no letter from A to D in its reference 'Paris'"),
        ("classification", ["date"], "no all_classes in its row"),
        ("instruction_kept", ["date"], "no instruction in its reference 'date'"),
    ],
)
def test_a_metric_that_is_not_for_an_answer(name: str, answers: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        measured(name, M[name], "12", answers, "r1")
    assert str(error.value) == f"metric {name}: request r1: {said}; choose another metric"


def test_such_a_metric_is_refused_before_a_model_is_loaded(kvx: Kvx, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"id": "q1", "context": "c d", "question": "q?", "answers": "Rome"}))
    outcome = kvx("prepare", "dataset=local", f"dataset.source.path={path}",
                  "dataset.metrics=[multiple_choice]")  # fmt: skip
    (line,) = outcome.err.strip().splitlines()[-1:]
    assert outcome.code == 2
    assert line.endswith(
        "example q1: no letter from A to D in its reference 'Rome', which "
        "dataset.metrics=multiple_choice needs; mend the data or choose another metric"
    )
