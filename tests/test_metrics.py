"""What a score means: LongBench's F1, RULER's shares, GSM8K's numbers."""

import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.errors import UserError
from kvx.scoring.metrics import METRICS as REGISTRY
from kvx.scoring.metrics import Score, resolve
from kvx.scoring.metrics.contained import string_match_all, string_match_any
from kvx.scoring.metrics.normalized import exact_match, normalize_answer, qa_f1
from kvx.scoring.metrics.numeric import find_number, numeric

METRICS = REGISTRY.built_in

# what compares a prediction with reference texts alone; instruction_kept is in test_instructions
TEXT_METRICS = {
    name: metric
    for name, metric in METRICS.items()
    if name != "instruction_kept" and not metric.reads
}
# a text can be its own reference; LongBench's other metrics are in test_longbench_metrics
OWN_REFERENCE = ["exact_match", "numeric", "qa_f1", "qa_f1_zh", "string_match_all",
                 "string_match_any"]  # fmt: skip
WORDS = st.lists(st.sampled_from(["red", "blue", "green", "the", "Red!", "42"]), max_size=8)


# normalisation: LongBench's order is lower, punctuation, articles, spaces


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Eiffel Tower.", "eiffel tower"),
        ("  a   man,\tan  apple\n", "man apple"),
        ("Theodore's anthem", "theodores anthem"),
        ("U.S.A.", "usa"),
        ("mother-in-law", "motherinlaw"),
        ("a.n. other", "other"),  # punctuation goes first, and leaves an article
        ("“Élan”", "“élan”"),  # only ASCII punctuation is dropped
        ("The, a. AN!", ""),
    ],
)
def test_normal_form_is_longbenchs(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


# exact_match


def test_exact_match_ignores_case_punctuation_and_articles() -> None:
    assert exact_match("The Tower of London.", ["tower of london"]) == Score(
        1.0, "tower of london", "tower of london"
    )


def test_exact_match_takes_any_reference_and_names_it() -> None:
    assert exact_match("He died.", ["he was killed", "He died"]) == Score(1.0, "he died", "he died")


def test_exact_match_takes_the_prediction_as_it_is_without_a_first_line_cut() -> None:
    assert exact_match("Paris\nQuestion: and Spain?", ["Paris"]).value == 0.0


def test_the_choice_a_can_be_matched_and_is_not_matched_by_silence() -> None:
    assert exact_match("A.", ["A"]).value == 1.0
    assert exact_match("An", ["A"]).value == 0.0
    assert exact_match("", ["A"]).value == 0.0


def test_nothing_is_no_match_for_nothing() -> None:
    assert exact_match("...", ["?"]).value == 0.0


# qa_f1, by hand


@pytest.mark.parametrize(
    ("prediction", "answers", "f1"),
    [
        # 1 of 4 predicted tokens, 1 of 1 reference token: 2 · .25 · 1 / 1.25
        ("He is a doctor today", ["doctor"], 0.4),
        # "the" goes on both sides; same = {cat, sat}: P 2/2, R 2/5
        ("The cat sat.", ["the cat sat on a red mat"], 2 * 1 * 0.4 / 1.4),
        # a repeated token counts as often as both have it: same 1, P 1/3, R 1/1
        ("no no no", ["no"], 0.5),
        # same = {blue, blue, red} of 4 and 3
        ("blue blue red red", ["red blue blue"], 6 / 7),
        # the maximum over references: 2/5 and 2/2
        ("in Paris", ["Paris, the capital of France, maybe", "in Paris"], 1.0),
        ("London", ["Paris"], 0.0),
        ("", ["Paris"], 0.0),
        ("the", ["the"], 0.0),  # as in LongBench: no token, nothing common
    ],
)
def test_f1_by_hand(prediction: str, answers: list[str], f1: float) -> None:
    assert qa_f1(prediction, answers).value == pytest.approx(f1)


def test_f1_names_the_reference_it_was_best_with() -> None:
    score = qa_f1("a big red dog", ["The cat", "The red dog", "dog"])
    assert score.value == pytest.approx(0.8)  # P 2/3, R 2/2
    assert (score.prediction, score.reference) == ("big red dog", "red dog")


def test_f1_counts_what_follows_the_first_line_against_the_prediction() -> None:
    assert qa_f1("Paris\nis it", ["Paris"]).value == pytest.approx(0.5)


@given(WORDS, WORDS)
def test_f1_is_symmetric(ours: list[str], reference: list[str]) -> None:
    one, other = " ".join(ours), " ".join(reference)
    assert qa_f1(one, [other]).value == qa_f1(other, [one]).value


@given(WORDS, WORDS, st.randoms(use_true_random=False))
def test_f1_does_not_see_word_order(
    ours: list[str], reference: list[str], rng: random.Random
) -> None:
    shuffled = rng.sample(ours, len(ours))
    answer = [" ".join(reference)]
    assert qa_f1(" ".join(ours), answer).value == qa_f1(" ".join(shuffled), answer).value


# RULER


def test_string_match_all_is_the_share_of_needles_found() -> None:
    needles = ["7519402", "1838273", "4402915", "6620017"]
    found = "The special magic numbers for quiet-otter are 7519402, 4402915 and 6620017."
    score = string_match_all(found, needles)
    assert score.value == 0.75
    assert score.reference == "7519402 | 1838273 | 4402915 | 6620017"


def test_string_match_any_needs_one() -> None:
    assert string_match_any("It was Sir Walter Raleigh", ["Raleigh", "Drake"]) == Score(
        1.0, "it was sir walter raleigh", "raleigh"
    )
    assert string_match_any("nobody", ["Raleigh", "Drake"]).value == 0.0


def test_string_match_ignores_case_and_matches_inside_words_as_ruler_does() -> None:
    assert string_match_all("VARIABLES: abcde", ["ABCDE", "variable"]).value == 1.0


def test_a_blank_reference_is_not_contained_in_everything() -> None:
    assert string_match_all("some text", ["", "needle"]).value == 0.0
    assert string_match_any("some text", [" "]).value == 0.0


# numeric


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She makes $1,234.50.", "1234.5"),
        (r"the answer is \boxed{42}", "42"),
        ("#### -3", "-3"),
        ("#### −3", "-3"),  # U+2212
        ("1/2 of 18 is 9", "9"),
        ("16 - 3 - 4 = 9 eggs, 9 * 2 = $18 a day.\n#### 18", "18"),
        ("#### 18 dollars in 2 days", "18"),
        ("#### $1,234,567", "1234567"),
        ("#### 45%", "45"),
        ("####18.", "18"),
        ("#### **7**", "7"),
        ("#### 5\n#### 6", "6"),  # the last mark
        # a model that goes on to the next example has answered the first
        ("#### 5\n\nQuestion: ...\n#### 6", "5"),
        ("9\n#### 18\n\nQ: Two robes?\nA: 3\n#### 3", "18"),
        ("#### 18\n\n**Problem 2:** Two robes?\n#### 3", "18"),
        ("#### 18\n\nTwo robes?\nAnswer: 1 + 2\n#### 3", "18"),
        ("The answer is 8.\n\nQ: There are 9 computers", "8"),
        ("So \\boxed{5}.\n\nExercise 7. Add 2 and 7: \\boxed{9}", "5"),
        ("Question: how many of 3?\n#### 7", "7"),  # asked again, not yet answered
        ("Her answer is 12 so far.\nAnswer: 15", "15"),
        (r"#### Step 1: add 2 and 3" + "\n" + r"So \boxed{5}.", "5"),  # a heading is no answer
        (r"\boxed{\text{12 apples}} because 3 times 4", "12"),
        (r"\boxed{\$1,234}", "1234"),
        (r"\boxed{1{,}234} or \boxed{}", "1234"),
        (r"first \boxed{1}, then \boxed{2}, not 3", "2"),
        (r"cut at the cap: \boxed{4", "4"),
        ("The loss is -$5", "-5"),
        ("The loss is $-5.25", "-5.25"),
        ("pages 10-12", "12"),  # a range, not minus 12
        ("5–7 days", "7"),
        ("x = (3)-4", "4"),
        ("answer: .5", "0.5"),
        ("the answer is...5", "5"),
        ("1, 2,3", "3"),
        ("4,5", "5"),
        ("1,00,000 rupees", "100000"),
        ("12\u202f500 km", "12500"),
        ("007", "7"),
        ("-0.00", "0"),
        ("版本 １８", "18"),  # full-width digits
    ],
)
def test_the_number_a_text_answers_with(text: str, number: str) -> None:
    assert find_number(text) == Decimal(number)
    assert numeric(text, [number]) == Score(1.0, number, number)


@pytest.mark.parametrize("written", ["18", "18.0", "18.00", "$18", "+18", "18%", "#### 18", "018"])
def test_the_same_number_written_otherwise_is_equal_on_both_sides(written: str) -> None:
    assert numeric(written, ["18"]).value == 1.0
    assert numeric("It is 18.", [written]).value == 1.0


def test_numbers_are_compared_exactly_not_as_floats() -> None:
    assert numeric("0.1000000000000000055511151231257827", ["0.1"]).value == 0.0
    assert numeric("9007199254740993", ["9007199254740992"]).value == 0.0


def test_a_sign_or_a_digit_too_many_is_wrong() -> None:
    assert numeric("#### 3", ["-3"]) == Score(0.0, "3", "-3")
    assert numeric("#### 1800", ["18"]).value == 0.0


def test_no_number_scores_zero_with_an_empty_prediction() -> None:
    assert numeric("I do not know.", ["18"]) == Score(0.0, "", "18")
    assert numeric("I do not know.", ["nor do I"]) == Score(0.0, "", "")


def test_numeric_takes_any_reference() -> None:
    assert numeric("about 4", ["3", "4.0"]) == Score(1.0, "4", "4")


@given(
    st.decimals(allow_nan=False, allow_infinity=False, places=4), st.text("ab .,!\n", max_size=9)
)
def test_a_number_is_found_after_any_words(number: Decimal, words: str) -> None:
    assert find_number(f"{words} {number:,f}") == number


@pytest.mark.parametrize(
    "loop", ["9", "1,", "1,23,", "####", "#### ", "-", "$", ".", "\\boxed{", "{", "1 ", " ", "the "]
)
@pytest.mark.timeout(600)  # linear patterns need 0.1 s; quadratic ones never come back
def test_a_degenerate_generation_does_not_hang_a_metric(loop: str) -> None:
    text = loop * (100_000 // len(loop))
    for metric in TEXT_METRICS.values():
        # linear, and half a second for such a text; ended by a limit of its own, after 5 seconds
        if {"jieba", "math_verify"} & set(metric.needs):
            continue
        metric(text, ["18"])
        metric("18", [text])


# what holds for every metric


@pytest.mark.parametrize("name", TEXT_METRICS)
@given(prediction=st.text(), answers=st.lists(st.text(), max_size=4))
def test_every_score_is_between_0_and_1(name: str, prediction: str, answers: list[str]) -> None:
    assert 0.0 <= METRICS[name](prediction, answers).value <= 1.0


@pytest.mark.parametrize("name", OWN_REFERENCE)
@given(answer=st.text(), other=st.text())
def test_the_answer_itself_scores_1_unless_it_normalises_to_nothing(
    name: str, answer: str, other: str
) -> None:
    score = METRICS[name](answer, [answer])
    assert score.value == (1.0 if score.reference else 0.0)
    if score.value and name != "string_match_all":
        assert METRICS[name](answer, [other, answer]).value == 1.0


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_an_empty_prediction_scores_0(name: str) -> None:
    assert METRICS[name]("", ["18"]).value == 0.0


def test_metrics_resolve_in_the_order_asked() -> None:
    assert list(resolve(["qa_f1", "exact_match"])) == ["qa_f1", "exact_match"]
    assert resolve(["numeric"])["numeric"]("#### 2", ["2"]).value == 1.0


def test_an_unknown_metric_is_one_line_with_the_field_and_the_choices() -> None:
    with pytest.raises(UserError) as error:
        resolve(["qa_f1", "rouge"])
    assert "dataset.metrics" in str(error.value)
    assert "'rouge'" in str(error.value)
    assert all(name in str(error.value) for name in METRICS)
    assert "\n" not in str(error.value)
