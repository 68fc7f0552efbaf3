"""SCBench's generated tasks (https://arxiv.org/abs/2412.10319, code under MIT): many questions on
one context, each asked of the same compressed cache (its multi-request mode).

Prompts are those of its code. Key-value pairs and numbers are drawn as InfiniteBench's, from which
SCBench took them; how the other contexts are worded is in its data alone, so theirs is kvx's.
"""

import random
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from kvx.data import row_examples
from kvx.data.example import Example
from kvx.data.files import existing_file, fingerprint, read_rows
from kvx.data.ranges import check_least, check_range, one_of
from kvx.data.sources.infinitebench import (
    KINDS,
    KV_QUESTION,
    MATH_FIND,
    NOISE,
    distinct_extremes,
    found,
    json_context,
    uuid_pairs,
)
from kvx.data.texts import log_uniform
from kvx.errors import UserError

VERSION = "1"
TASKS = ("kv", "prefix_suffix", "mf", "passkey")
HINT = "set dataset.source.path to a jsonl file of SCBench, or to null to generate"
PREFIX_SUFFIX = (
    "Which of the strings begins with {prefix} and ends with {suffix}? Answer with the whole "
    "string and nothing else.\nThe string is: "
)
NEEDLE = "The pass key of the {name} is {key}. Remember it. {key} is the pass key of the {name}.\n"
NAMES = (
    "lighthouse", "library", "harbour", "museum", "observatory", "theatre", "station", "cathedral",
    "brewery", "fortress", "aquarium", "mill", "garden", "tower", "archive", "bridge",
)  # fmt: skip


@dataclass
class ScbenchSource:
    """`n_contexts` contexts of `min_items`..`max_items` pairs, strings, numbers or lines.

    Each has `n_questions` questions and is a cluster. With `path`, the contexts of a file in
    SCBench's layout (`multi_turns` of `input` and `answer`) are asked instead, all questions of
    each.
    """

    task: str
    path: str | None = None
    n_contexts: int = 60
    n_questions: int = 5
    min_items: int = 20
    max_items: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("task", self.task, TASKS)
        check_least("n_contexts", self.n_contexts)
        check_least("n_questions", self.n_questions)
        check_range("min_items", self.min_items, "max_items", self.max_items, 7)
        most = {"mf": len(KINDS), "passkey": len(NAMES)}.get(self.task, self.min_items)
        if self.n_questions > most:
            raise UserError(
                f"dataset.source.n_questions={self.n_questions}: a context of task={self.task} "
                f"has at most {most}"
            )

    @staticmethod
    def identity_of(fields: dict[str, Any]) -> dict[str, Any]:
        """Of a file's examples only the task matters beside the file."""
        return {
            k: v for k, v in fields.items() if not fields.get("path") or k in ("_target_", "task")
        }

    def revision(self) -> str:
        if self.path:
            return f"scbench-{VERSION}-{fingerprint(existing_file(self.path, HINT))[:12]}"
        return f"scbench-{VERSION}"

    def examples(self) -> Iterator[Example]:
        if self.path:
            path = existing_file(self.path, HINT)
            reading = row_examples.Reading("scbench")
            examples = row_examples.examples(read_rows(path), str(path), reading)
            yield from _led(examples) if self.task == "mf" else examples
            return
        for index in range(self.n_contexts):
            rng = random.Random(f"{self.seed}-{self.task}-{index}")
            n_items = log_uniform(self.min_items, self.max_items, rng)
            context, asked = self._document(n_items, rng)
            name = f"{self.task}-{self.seed}-{index:04d}"
            examples = (
                Example(f"{name}-{turn}", context, question, (answer,), name, {"n_items": n_items})
                for turn, (question, answer) in enumerate(asked)
            )
            yield from _led(examples) if self.task == "mf" else examples

    def _document(self, n_items: int, rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
        """A context, and its questions with their answers."""
        n = self.n_questions
        if self.task == "kv":
            pairs = uuid_pairs(n_items, rng)
            chosen = rng.sample(pairs, n)
            return json_context(pairs), [("\n" + KV_QUESTION.format(key=k), v) for k, v in chosen]
        if self.task == "mf":
            numbers = distinct_extremes(n_items, rng)
            kinds = rng.sample(KINDS, n)
            asked = [(MATH_FIND.format(kind=k), str(found(k, numbers))) for k in kinds]
            return str(numbers), asked
        if self.task == "prefix_suffix":
            strings = _strings(n_items, rng)
            ends = [PREFIX_SUFFIX.format(prefix=s[:4], suffix=s[-4:]) for s in strings]
            order = rng.sample(range(n_items), n)
            return "\n".join(strings), [("\n" + ends[i], strings[i]) for i in order]
        keys = {name: "".join(rng.choices(string.digits, k=5)) for name in rng.sample(NAMES, n)}
        lines = [NOISE] * n_items
        for name, key in keys.items():
            lines.insert(rng.randint(0, len(lines)), NEEDLE.format(name=name, key=key))
        return "".join(lines), [(f"What is the pass key of the {m}?", k) for m, k in keys.items()]


def _strings(n: int, rng: random.Random) -> list[str]:
    """`n` random strings of 16 to 40 letters and digits; no two with the same beginning and end."""
    found: dict[tuple[str, str], str] = {}
    while len(found) < n:
        text = "".join(rng.choices(string.ascii_letters + string.digits, k=rng.randint(16, 40)))
        found.setdefault((text[:4], text[-4:]), text)
    return list(found.values())


def _led(examples: Iterator[Example]) -> Iterator[Example]:
    """math_find as SCBench asks it.

    The first question leads every context of its cluster, and each question is asked twice: as a
    question made of it ("What is the largest number of the list?"), and as it stands.
    """
    leads: dict[str, str] = {}
    for example in examples:
        lead = leads.setdefault(example.cluster, example.question)
        named = re.search(r"The (.+) is", example.question)
        if named is None:
            raise UserError(
                f"example {example.example_id}: dataset.task=mf needs questions such as 'The "
                f"largest number of the list is:', not {example.question[:60]!r}"
            )
        yield replace(
            example,
            context=f"{lead}\n\n{example.context}",
            question=f"What is the {named[1].lower()}?\n\n{example.question}",
        )
