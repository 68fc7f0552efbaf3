"""MATH-500, 500 problems of MATH (https://arxiv.org/abs/2103.03874), from a file or the hub."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from kvx.data.example import Example
from kvx.data.files import existing_file, fingerprint, read_rows
from kvx.data.hub_files import commit, hub_file
from kvx.data.ranges import check_range
from kvx.data.texts import required
from kvx.data.values import missing, text
from kvx.errors import UserError

VERSION = "1"
FILE = "test.jsonl"
HINT = f"set dataset.source.path to MATH-500's {FILE}"
N_RESERVED = 50  # the last problems serve as worked examples, if there are any


@dataclass
class Math500Source:
    """Rows {problem, solution, answer, subject, level, unique_id}, alone or within `doc`.

    They come from the file `path`, else from `test.jsonl` of the hub dataset `hub` at the commit
    `hub_revision`. Each context has `min_shots`..`max_shots` worked examples, drawn from the last
    problems, which are then not asked. Without worked examples all are asked, and the problem
    itself is the context.
    """

    path: str | None = None
    hub: str = "HuggingFaceH4/MATH-500"
    hub_revision: str | None = None
    min_shots: int = 1
    max_shots: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("min_shots", self.min_shots, "max_shots", self.max_shots, 0)
        check_range("max_shots", self.max_shots, "the worked examples", N_RESERVED, 0)

    @staticmethod
    def identity_of(fields: dict[str, Any]) -> dict[str, Any]:
        """The fields that decide the examples; `revision` names the commit."""
        return {k: v for k, v in fields.items() if k != "hub_revision"}

    def revision(self) -> str:
        if self.path:
            return f"math500-{VERSION}-{fingerprint(existing_file(self.path, HINT))[:12]}"
        return f"math500-{VERSION}-{self.hub}@{commit(self.hub, self.hub_revision)}"

    def examples(self) -> Iterator[Example]:
        if self.path:
            file = existing_file(self.path, HINT)
        else:
            file = hub_file(self.hub, self.hub_revision, FILE, HINT)
        docs = []
        for number, row in enumerate(read_rows(file), 1):
            doc = row.get("doc", row)
            at = f"{file}: row {number}"
            docs.append({**doc, **required(doc, ("problem", "solution", "answer"), at)})
        n_reserved = N_RESERVED if self.max_shots else 0
        if len(docs) <= n_reserved:
            raise UserError(
                f"{file}: holds {len(docs)} problems; the last {n_reserved} are worked examples "
                "(dataset.source.max_shots=0 min_shots=0 asks all)"
            )
        asked, reserved = docs[: len(docs) - n_reserved], docs[len(docs) - n_reserved :]
        for index, doc in enumerate(asked):
            rng = random.Random(f"{self.seed}-{index}")
            shots = rng.sample(reserved, rng.randint(self.min_shots, self.max_shots))
            worked = [f"Problem: {s['problem']}\nSolution: {s['solution']}" for s in shots]
            problem = f"Problem: {doc['problem']}"
            name = doc.get("unique_id")
            kept = {k: doc[k] for k in ("subject", "level", "type") if not missing(doc.get(k))}
            yield Example(
                example_id=f"math500-{index:03d}",
                context="\n\n".join(worked) if worked else problem,
                question=problem if worked else "",
                answers=(doc["answer"],),
                meta={
                    **kept,
                    "n_shots": len(shots),
                    **({} if missing(name) else {"unique_id": text(name, f"{file}: 'unique_id'")}),
                },
            )
