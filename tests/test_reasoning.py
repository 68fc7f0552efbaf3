"""Reasoning told apart from the answer, for the tags of the common families."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.text.answer import answer_of
from kvx.text.reasoning import Split, opens, split

THOUGHT = "They ask for the capital."


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{THOUGHT}</think>Paris",
        f"<think>\n{THOUGHT}\n</think>\n\nParis",
        f"{THOUGHT}\n</think>\n\nParis",  # the template opened it
        f"<thinking>{THOUGHT}</thinking>Paris",
        f"<THINK>{THOUGHT}</think>Paris",
        f"<think>{THOUGHT}</thinking>Paris",
        f"<reasoning>{THOUGHT}</reasoning>\nParis",
        f"<thought>{THOUGHT}</thought>Paris",
        f"<seed:think>{THOUGHT}</seed:think>Paris",
        f"<longcat_think>{THOUGHT}</longcat_think>Paris",
        f"[THINK]{THOUGHT}[/THINK]Paris",
        f"◁think▷{THOUGHT}◁/think▷Paris",
        f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>Paris<|END_RESPONSE|>",
        f"<|inner_prefix|>{THOUGHT}<|inner_suffix|>Paris",
        f"{THOUGHT}<|think:end|>Paris",
        f"<|begin_of_thought|>{THOUGHT}<|end_of_thought|>\n<|begin_of_solution|>Paris"
        "<|end_of_solution|>",
        f"<|channel>thought\n{THOUGHT}<channel|>Paris",
        f"<think>\n{THOUGHT}\n</think>\n<answer>\nParis\n</answer>",
        f"Here is my thought process: {THOUGHT} Here is my response: Paris",
        f"Here's my thought process:\n{THOUGHT}\nHere's my response:\nParis",
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final"
        "<|message|>Paris<|return|>",
        f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final "
        "<|constrain|>json<|message|>Paris",
        f"analysis{THOUGHT}assistantfinalParis",  # special tokens dropped on the way
    ],
)
def test_the_answer_of_every_family(text: str) -> None:
    assert split(text) == Split(THOUGHT, "Paris")
    assert split(text.replace(THOUGHT, "")).answer == "Paris" or text.startswith("analysis")


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{THOUGHT}", f"<reasoning>\n{THOUGHT}\n", f"[THINK]{THOUGHT}",
        f"<|channel|>analysis<|message|>{THOUGHT}", f"analysis{THOUGHT}",
        f"Here is my thought process: {THOUGHT}", f"<|channel>thought\n{THOUGHT}",
        f"<think>{THOUGHT}</think>", f"{THOUGHT}</think>\n",
    ],
)  # fmt: skip
def test_reasoning_without_an_answer_leaves_none(text: str) -> None:
    found = split(text)
    assert (found.reasoning, found.answer) == (THOUGHT, "")
    assert found.closed is ("</think>" in text)


def test_a_prompt_that_opened_the_tag_makes_a_text_without_any_reasoning() -> None:
    assert split("Paris") == Split(None, "Paris")
    assert split("It is Par", opened=True) == Split("It is Par", "", closed=False)
    assert split("So.</think>Paris", opened=True) == Split("So.", "Paris")
    assert opens("<|Assistant|><think>\n")
    assert opens("<|im_start|>assistant\n[THINK]")
    assert not opens("<think>\n\n</think>\n\n")
    assert not opens("What does <think> mean? Answer:")


@pytest.mark.parametrize(
    "text",
    ["Paris", "", " Paris\n", "analysis of the text", "final answer: 3", "I think so", "a<b"],
)
def test_a_text_without_tags_is_left_as_it_is(text: str) -> None:
    assert split(text) == Split(None, text)


def test_several_blocks_and_blocks_in_blocks() -> None:
    assert split("<think>a</think>Par<think>b</think>is") == Split("a\nb", "Paris")
    nested = split("<think>a <think>b</think> c</think>Paris")
    assert nested.answer == "Paris"
    assert split("<think>a</think>Paris<think>again") == Split("a\nagain", "Paris")


@given(st.text(st.sampled_from("<>/think[]THINK|a \n"), max_size=60), st.booleans())
def test_nothing_is_made_up(text: str, opened: bool) -> None:
    found = split(text, opened)
    assert found.answer in text or "".join(found.answer.split()) in "".join(text.split())
    assert found.closed or found.answer == ""


@pytest.mark.parametrize(
    "loop", ["<think>", "</think>", "<think></think>", "<|channel|>final", "<"]
)
def test_a_loop_of_tags_is_split_in_no_time(loop: str) -> None:
    began = time.process_time()
    split(loop * 20_000)
    assert time.process_time() - began < 5


def test_what_is_judged_is_the_answer_up_to_the_first_stop_string() -> None:
    text = "<think>Question: which?</think>18\n#### 18\n\nQuestion: next"
    found = answer_of(text, "length", ["Question:", "\n\nQ"])
    assert (found.text, found.finish_reason, found.cut) == ("18\n#### 18", "stop", True)
    assert answer_of(text, "length", ["Question:"], strip_reasoning=False).text == "<think>"
    assert answer_of("a b", "length", ["c"]).finish_reason == "length"
    assert answer_of("<think>a", "length").unfinished
    assert not answer_of("<think>a", "length", strip_reasoning=False).unfinished
