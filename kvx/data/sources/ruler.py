"""RULER (https://arxiv.org/abs/2404.06654), all 13 tasks, generated to a length in tokens.

Tasks and repeats are those of NVIDIA/RULER's scripts/synthetic.yaml (Apache-2.0). Two things
differ. Its essays cannot be redistributed: the haystack of texts is State of the Union speeches,
each example another excerpt. And RULER shuffles every example with the same seed, so that what is
asked for stands at the same places in all of them: here each has a random generator of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from kvx.data.example import Example
from kvx.data.files import fingerprint
from kvx.data.prompt import PromptBuilder
from kvx.data.ranges import check_least
from kvx.data.ruler_tasks import documents
from kvx.data.ruler_tasks.counting import CommonWords, FrequentWords
from kvx.data.ruler_tasks.drafts import Draft, Task
from kvx.data.ruler_tasks.needles import NOISE_LINES, OTHERS, TEXT, UUIDS, Needles, Speeches
from kvx.data.ruler_tasks.to_length import fitted, seeded
from kvx.data.ruler_tasks.tracking import Tracking
from kvx.errors import UserError
from kvx.identity.hashing import digest

VERSION = "1"
NEEDLES: dict[str, dict[str, Any]] = {
    "niah_single_1": {"haystack": NOISE_LINES},
    "niah_single_2": {"haystack": TEXT},
    "niah_single_3": {"haystack": TEXT, "value_kind": UUIDS},
    "niah_multikey_1": {"haystack": TEXT, "keys": 4},
    "niah_multikey_2": {"haystack": OTHERS},
    "niah_multikey_3": {"haystack": OTHERS, "key_kind": UUIDS, "value_kind": UUIDS},
    "niah_multivalue": {"haystack": TEXT, "values": 4},
    "niah_multiquery": {"haystack": TEXT, "queries": 4},
}
DOCUMENTS = {"qa_1": documents.SQUAD, "qa_2": documents.HOTPOTQA}
TASKS = (*NEEDLES, "vt", "cwe", "fwe", *DOCUMENTS)


@dataclass
class RulerSource:
    """`n_examples` of one of RULER's tasks, each with `length` tokens of prompt and answer at most.

    `haystack` is a folder of texts, `path` a folder with SQuAD's and HotpotQA's files. `intro` and
    `asks` are what stands before the context and after it in the worked example of vt and cwe.
    `depths` (percent) places the needle of a task that has one: one depth after the other.
    """

    task: str
    length: int
    haystack: str
    n_examples: int = 20
    seed: int = 0
    path: str | None = None
    intro: str = ""
    asks: str = ""
    depths: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_least("n_examples", self.n_examples)
        if self.task not in TASKS:
            raise UserError(f"dataset.source.task={self.task}: use one of {', '.join(TASKS)}")
        if self.depths:
            settings = NEEDLES.get(self.task)
            if settings is None or {"keys", "values", "queries"} & set(settings):
                singles = [t for t, own in NEEDLES.items() if len(own) == 1 or "value_kind" in own]
                raise UserError(
                    f"dataset.source.depths: dataset.task={self.task} has no single needle; use "
                    f"one of {', '.join(singles)}"
                )
            if wrong := [d for d in self.depths if not 0 <= d <= 100]:
                raise UserError(f"dataset.source.depths={wrong}: are percent, from 0 to 100")

    def revision(self) -> str:
        """Identity of the texts or questions that the task is made from."""
        files = []
        if self._speeches is not None:
            files = sorted(fingerprint(file) for file in self._speeches.files)
        elif self.task in DOCUMENTS:
            files = [fingerprint(self._file)]
        own = f"-{digest(files, 12)}" if files else ""
        return f"ruler-{VERSION}{own}"

    def examples_for(self, builder: PromptBuilder, max_new_tokens: int) -> Iterator[Example]:
        """The examples, fitted to the prompts that `builder` makes of them."""
        room = self.length - max_new_tokens
        if room < 1:
            raise UserError(
                f"dataset.length={self.length}: answers alone may have {max_new_tokens} tokens"
            )

        def count(texts: Sequence[str]) -> list[int]:
            return builder.count_tokens(texts)

        task = self._task
        drafts = (
            (index, task.draft(index, seeded(self.seed, index), count))
            for index in range(self.n_examples)
        )
        return fitted(drafts, self._example, builder.texts, count, room)

    def _example(self, draft: Draft, index: int, n: int) -> Example:
        return Example(
            example_id=f"{self.task}-{self.seed}-{index:05d}",
            context=draft.build(n),
            question=draft.question,
            answers=draft.answers,
            cluster=draft.cluster,
            meta=draft.meta(n),
        )

    @cached_property
    def _speeches(self) -> Speeches | None:
        uses = NEEDLES.get(self.task, {}).get("haystack") == TEXT
        return Speeches(self.haystack, self.seed) if uses else None

    @cached_property
    def _file(self) -> Any:
        return documents.file_of(DOCUMENTS[self.task], self.path, self.task)

    @cached_property
    def _task(self) -> Task:
        if self.task in NEEDLES:
            return Needles(
                length=self.length, speeches=self._speeches, depths=self.depths,
                **NEEDLES[self.task],
            )  # fmt: skip
        if self.task == "vt":
            return Tracking(self.intro, self.asks)
        if self.task == "cwe":
            return CommonWords(self.intro, self.asks, self.length)
        if self.task == "fwe":
            return FrequentWords(self.length)
        return documents.Documents(DOCUMENTS[self.task], self._file)
