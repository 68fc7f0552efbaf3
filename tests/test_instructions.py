"""dataset=instructions: what is asked, how it is checked, and where it stands in a prompt."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvx.data.files import read_jsonl
from kvx.data.sources.instructions import KINDS, InstructionsSource
from kvx.data.texts import story_name
from kvx.errors import UserError
from kvx.scoring.instructions import CHECKS, Instruction, kept_at_the_end, parse
from kvx.scoring.metrics.instruction_kept import instruction_kept
from kvx.scoring.names import names_and_numbers, question_recall
from tests.conftest import Kvx

# kind, value, texts that keep it, texts that break it
EXAMPLES = [
    ("begin_word", "Overall", ['Overall, it went well.', '"overall" it did', "**Overall** yes"],
     ["It went well overall.", "Overalls are blue."]),
    ("end_phrase", "That is all.", ["Done. That is all.", 'So. "that is all"', "x That is all!\n"],
     ["That is all. Or not.", "Done."]),
    ("keyword", "window", ["A Window stood open.", "window"], ["The windows stood open.", "No."]),
    ("no_word", "the", ["A man and his dog.", "They went there."], ["The man.", "on the sea"]),
    ("number", 42, ["It is 42.", "42 men"], ["It is 142.", "It is 4 2."]),
    ("bullets", 2, ["* one\n* two", "Points:\n- one\n- two"], ["* one", "a\nb", "*one*\n*two*"]),
    ("numbered", 2, ["1. one\n2. two", "So:\n1) a\n2) b"], ["1. a\n1. b", "1. a\n2. b\n3. c", "a"]),
    ("sentences", 2, ["One. Two!", 'He said "no." He left.'], ["One.", "One. Two. Three.", "One"]),
    ("paragraphs", 2, ["One.\n\nTwo.", "a\n \nb"], ["One.\nTwo.", "a\n\nb\n\nc"]),
    ("max_words", 3, ["One two three.", "I don't know"], ["One two three four."]),
    ("capitals", None, ["ALL IS WELL 1.", "É"], ["All is well", "42"]),
    ("lowercase", None, ["all is well 1."], ["All is well", "42"]),
    ("json", None, ['{"topic": "x"}', '```json\n{"a": 1}\n```'], ['{"a": ', "{}", "12", "[1]"]),
    ("no_comma", None, ["All is well."], ["Yes, all is well."]),
    ("quotes", None, ['"All is well."', "“Well.”"], ['"All" is well.', "All is well."]),
    ("title", None, ["<<All>>\nIt is.", "Title: <<A b>>"], ["All\n<<late>>", "<< >> x", "<all>"]),
    ("question_mark", None, ["Is it?", 'So: "is it?"'], ["Is it? Yes."]),
    ("postscript", None, ["Well.\n\nP.S. More.", "Well.\n**P.S.** More."], ["The P.S. is short."]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "value", "good", "bad"), EXAMPLES, ids=[e[0] for e in EXAMPLES])
def test_what_keeps_an_instruction_and_what_breaks_it(
    kind: str, value: str | int | None, good: list[str], bad: list[str]
) -> None:
    instruction = Instruction(kind, value)
    assert [text for text in good if not instruction.kept(text)] == []
    assert [text for text in bad if instruction.kept(text)] == []
    assert parse(instruction.dumps()) == instruction


def test_every_kind_has_examples_and_a_wording() -> None:
    assert {kind for kind, *_ in EXAMPLES} == set(CHECKS)
    assert set(KINDS) <= set(CHECKS)
    assert len(KINDS) >= 12


@given(st.sampled_from(sorted(CHECKS)), st.text(max_size=80))
def test_any_text_can_be_checked_and_an_empty_one_keeps_nothing(kind: str, text: str) -> None:
    values = next(value for k, value, *_ in EXAMPLES if k == kind)
    instruction = Instruction(kind, values)
    assert instruction.kept(text) in (True, False)
    assert not instruction.kept("")
    assert not instruction.kept(" \n. ")
    assert instruction.kept(text) == instruction.kept(f"  {text}\n")


@pytest.mark.parametrize(
    "loop", ["a", " ", "\n", "<<a ", "1. ", '"', "```json ", "P.", ". ", "* \n"]
)
def test_a_degenerate_generation_does_not_hang_a_check(loop: str) -> None:
    text = loop * (100_000 // len(loop))
    for kind, value, *_ in EXAMPLES:
        Instruction(kind, value).kept(f"<<```{text}``` x")
    question_recall("Did Nora meet Ivo?", text)
    assert parse(text) is None


@given(st.text(max_size=60) | st.sampled_from(["12", "[]", "null", '{"instruction": "json"}']))
def test_other_answers_are_no_instructions(answer: str) -> None:
    assert parse(answer) is None


def test_a_value_of_the_wrong_type_is_no_instruction() -> None:
    for kind, value in (("bullets", "3"), ("bullets", True), ("keyword", 3), ("json", "x")):
        assert parse(json.dumps({"instruction": kind, "value": value})) is None


def test_a_cut_text_is_not_blamed_for_what_its_end_would_have_held() -> None:
    ends, begins = Instruction("end_phrase", "That is all."), Instruction("begin_word", "Overall")
    assert kept_at_the_end(ends, "It goes on", cut=True) is None
    assert kept_at_the_end(ends, "It goes on", cut=False) is False
    assert kept_at_the_end(begins, "It goes on", cut=True) is False
    assert kept_at_the_end(Instruction("number", 42), "there are 42 and", cut=True) is True
    one = Instruction("sentences", 1)
    assert kept_at_the_end(one, "It goes on and on and", cut=True) is None
    assert kept_at_the_end(one, "It goes on and on.", cut=False) is True
    assert kept_at_the_end(ends, "That is all.", cut=True) is None


def test_the_metric_is_the_share_of_instructions_kept() -> None:
    asked = [Instruction("no_comma").dumps(), Instruction("capitals").dumps()]
    assert instruction_kept("ALL IS WELL", asked).value == 1
    assert instruction_kept("ALL, ALL IS WELL", asked).value == 0.5
    with pytest.raises(UserError, match="use it with dataset=instructions"):
        instruction_kept("Paris", ["Paris"])


def source(folder: Path, **fields: object) -> InstructionsSource:
    """Over three small texts of its own."""
    speeches = folder / "speeches"
    speeches.mkdir(exist_ok=True)
    line = "The state of our union is strong and our trade with all nations grows daily. "
    for name in ("1790-Washington-1", "1841-VanBuren-1"):
        (speeches / f"{name}.txt").write_text(line * 40)
    story = "One day Nora met Ivo at sea. Later Nora and Ivo went home with Ivo's dog. "
    rows = [{"question": "q", "answer": "a", "passage": story * 5 + f"End {i}."} for i in range(4)]
    (folder / "stories.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given: dict[str, object] = {
        "haystack": str(speeches), "path": str(folder / "stories.jsonl"), "n_examples": 108,
        "min_words": 60, "max_words": 180,
    }  # fmt: skip
    return InstructionsSource(**(given | fields))  # type: ignore[arg-type]


def test_kinds_and_placements_come_evenly_and_lengths_as_asked(tmp_path: Path) -> None:
    examples = list(source(tmp_path).examples())
    cells = Counter((e.meta["kind"], e.meta["placement"]) for e in examples)
    assert len(cells) == len(KINDS) * 3
    assert set(cells.values()) == {2}
    for e in examples:
        assert 50 <= len(e.context.split()) <= 180 + 60  # an instruction, and a sentence too many
    # what stands on one text is resampled together, and never on two sides of a split
    stories = {e.cluster for e in examples} - {"1790-Washington-1", "1841-VanBuren-1"}
    assert stories == {story_name(row["passage"]) for row in read_jsonl(tmp_path / "stories.jsonl")}
    assert {e.example_id for e in examples} == {f"instructions-0-{i:05d}" for i in range(108)}


def test_the_instruction_stands_where_its_placement_says(tmp_path: Path) -> None:
    for e in source(tmp_path, kinds={"number": 1, "json": 2}).examples():
        instruction = parse(e.answers[0])
        assert instruction is not None
        assert instruction.kind == e.meta["kind"]
        number = instruction.kind == "number"
        told = "must contain the number" if number else "must be a JSON object"
        words = e.context.split(told)[0].split()
        if e.meta["placement"] == "after":
            assert told in e.question
            assert told not in e.context
        else:
            assert told in e.context
            assert told not in e.question
            assert "Follow the rule" in e.question
            assert (len(words) == 3) == (e.meta["placement"] == "before")
        if e.meta["placement"] == "inside":
            assert 0.2 <= e.meta["depth"] <= 0.8
            assert len(words) > 15
        if instruction.kind == "number":
            assert str(instruction.value) in e.context + e.question
    kinds = Counter(
        e.meta["kind"] for e in source(tmp_path, kinds={"number": 1, "json": 2}).examples()
    )
    assert kinds["json"] == 2 * kinds["number"]


def test_examples_are_seeded_and_the_revision_knows_the_texts(tmp_path: Path) -> None:
    once = list(source(tmp_path).examples())
    assert once == list(source(tmp_path).examples())
    assert once != list(source(tmp_path, seed=1).examples())
    both, speeches = source(tmp_path), source(tmp_path, texts=["speeches"])
    assert both.revision() != speeches.revision()
    assert all("Nora" not in e.context for e in speeches.examples())
    before = both.revision()
    (tmp_path / "speeches" / "1801-Adams-1.txt").write_text("Another one.")
    assert source(tmp_path).revision() != before


def test_the_example_in_a_rule_keeps_it(tmp_path: Path) -> None:
    for e in source(tmp_path, placements=["after"]).examples():
        instruction = parse(e.answers[0])
        assert instruction is not None
        shown = re.split("example:", e.question, flags=re.IGNORECASE)[1].strip()
        assert instruction.kept(shown), (instruction, shown)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kinds": {"poem": 1}}, "dataset.source.kinds: poem; choose from end_phrase"),
        ({"kinds": {"json": 0}}, "dataset.source.kinds: shares must be 0 or more"),
        ({"placements": ["under"]}, "dataset.source.placements: under; choose from before"),
        ({"texts": []}, "dataset.source.texts: empty; choose from speeches, stories"),
        ({"min_words": 500}, "dataset.source.min_words=500: must be at most max_words=180"),
        ({"max_words": 100_000}, "dataset.source.max_words=100000: no text in"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, fields: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        list(source(tmp_path, **fields).examples())


def test_names_and_numbers_of_a_question() -> None:
    text = "Natalia sold clips to 48 of her friends in April. How many did Ben's 1,200 clients buy?"
    assert names_and_numbers(text) == ["natalia", "48", "april", "ben", "1200"]
    assert question_recall(text, "In april natalia sold 48, Ben 1200") == 1
    assert question_recall(text, "She sold 1,200.") == pytest.approx(0.2)
    assert question_recall("Who is Mark?", "He is Mark.") is None


def test_the_stages_take_the_dataset(kvx: Kvx, tmp_path: Path) -> None:
    made = source(tmp_path)
    arguments = (
        "dataset=instructions", f"dataset.source.haystack={made.haystack}",
        f"dataset.source.path={made.path}", "dataset.source.n_examples=60",
        "dataset.source.min_words=60", "dataset.source.max_words=180",
        "dataset.source.kinds.json=0", "dataset.binning.n_bins=2",
    )  # fmt: skip
    outcome = kvx("prepare", *arguments)
    assert outcome.code == 0, outcome.err
    wrong = kvx("prepare", *arguments, "dataset.source.texts=[poems]")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "dataset.source.texts: poems; choose from speeches, stories" in wrong.err
