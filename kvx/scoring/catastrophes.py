"""Catastrophes of responses beside their full caches: pure functions on tables.

A row of `store.schemas.CATASTROPHES` holds what a response shows alone; `pair` adds what only the
comparison with the full cache's answer to the same example shows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.scoring.instructions import Instruction, kept_at_the_end, parse
from kvx.scoring.loops import Loop
from kvx.scoring.names import asked_for, recall

CATASTROPHES = ("looping", "non_termination", "amnesia")
# the columns that `pair` adds; `any` is one of the three catastrophes
KINDS = (*CATASTROPHES, "silent_failure", "any")
TOKENS, WORDS = "token", "word"
REPETITION, SERVER_RULE = "repetition", "server"
DRIFT_HAD = 0.5  # share of the question's names and numbers that the full cache mentions
RIGHT = 0.5  # the least score of a right answer
MAY_BE_UNKNOWN = ("amnesia", "silent_failure")
# what `pair` judges by
JUDGED = (
    "looping", "cap_reached", "instruction_kept", "question_recall", "score", "failure",
)  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """What an example asks for, as far as a program can check it in an answer."""

    instructions: tuple[Instruction, ...]
    names: frozenset[str]

    @classmethod
    def of(cls, question: str, answers: Sequence[str]) -> "Asked":
        parsed = (parse(answer) for answer in answers)
        return cls(tuple(one for one in parsed if one is not None), asked_for(question))

    def seen_in(self, text: str, cut: bool) -> dict[str, Any]:
        """The columns of CATASTROPHES that an answer's `text` shows; `cut`: the cap ended it."""
        kept = [kept_at_the_end(one, text, cut) for one in self.instructions]
        return {"instruction_kept": _all(kept), "question_recall": recall(self.names, text)}


def loop_columns(loop: Loop | None, told: bool) -> dict[str, Any]:
    """The columns of CATASTROPHES about loops; `told`: a server ended the response for one."""
    return {
        "looping": told or loop is not None, "loop_onset": loop and loop.onset,
        "loop_rule": loop.rule if loop else SERVER_RULE if told else None,
        "loop_period": loop and loop.period,
    }  # fmt: skip


def _all(kept: list[bool | None]) -> bool | None:
    if False in kept:
        return False
    return None if not kept or None in kept else True


def pair(own: pd.DataFrame, full: pd.DataFrame) -> pd.DataFrame:
    """Each response of a point beside the full cache's to the same example, for examples of both.

    `own` and `full` hold CATASTROPHES rows of one point each; of several points if `own` has a
    column `twin_point_id`. The result keeps the rows' order and the columns of `own`, and adds
    `<kind>`, `twin_<kind>` and `excess_<kind>` (here, not in the full cache) for each of `KINDS`:

    - `looping`, `non_termination` (the token cap was reached): what the response shows alone.
    - `amnesia`: an instruction that the full cache kept is broken, or the answer mentions none of
      the question's names and numbers where the full cache's has half or more. Null where neither
      can be judged. `twin_amnesia` is the reverse: what chance alone does.
    - `silent_failure`: ended, fluent (no failure, no loop), wrong where the full cache is right, no
      amnesia; `twin_silent_failure` is the reverse. Null where one of the two has no score.
    - `any`: looping, non-termination or amnesia, as far as they can be judged.

    `onset` is that of the loop (index of the generated token), null without one. Amnesia and silent
    failure have pandas' `boolean` type, the others are plain bools. Raises `KeyError` for a missing
    column, `pandas.errors.MergeError` for a full cache with an example twice.
    """
    key = ["example_id"]
    if "twin_point_id" in own.columns:
        key = ["twin_point_id", "example_id"]
        full = full.drop(columns="twin_point_id", errors="ignore")
        full = full.rename(columns={"point_id": "twin_point_id"})
    mine = own.drop(columns=["looping"]).assign(**{f"here_{n}": own[n] for n in JUDGED})
    theirs = full[key].assign(**{f"there_{n}": full[n] for n in JUDGED})
    both = mine.merge(theirs, on=key, how="inner", validate="m:1")
    here, there = (_flags(both, side) for side in ("here", "there"))
    found, found_there = _judge(here, there), _judge(there, here)
    added: dict[str, Any] = {}
    for kind in KINDS:
        ours, theirs_ = found[kind], found_there[kind]
        excess = _known((ours == 1) & (theirs_ == 0), ours, theirs_)
        for prefix, flags in (("", ours), ("twin_", theirs_), ("excess_", excess)):
            added[f"{prefix}{kind}"] = _column(kind, flags)
    sides = [f"{side}_{n}" for side in ("here", "there") for n in JUDGED]
    return both.drop(columns=sides).assign(onset=both["loop_onset"], **added)


Flags = dict[str, NDArray[np.float64]]  # 1 yes, 0 no, nan unknown


def flags_beside(own: Mapping[str, NDArray[Any]], full: Mapping[str, NDArray[Any]] | None) -> Flags:
    """Each of `KINDS` and `twin_<kind>` of n responses, beside the full cache's if there is one.

    `own` and `full` hold `place`, the distinct numbers of the examples, and `JUDGED` as flags
    (`failure`: whether there is one). What `pair` says of a pair is said here, and of a response
    without a partner what it shows alone.
    """
    n = len(own["place"])
    found = {f"{side}{kind}": np.full(n, np.nan) for kind in KINDS for side in ("", "twin_")}
    found |= {"looping": own["looping"], "non_termination": own["cap_reached"]}
    found["any"] = np.fmax(own["looping"], own["cap_reached"])
    if full is None or not n or not len(full["place"]):
        return found
    row = np.full(int(max(own["place"].max(), full["place"].max())) + 1, -1)
    row[full["place"]] = np.arange(len(full["place"]))
    partner = row[own["place"]]
    both = partner >= 0
    here = {name: own[name][both] for name in JUDGED}
    there = {name: full[name][partner[both]] for name in JUDGED}
    for side, flags in (("", _judge(here, there)), ("twin_", _judge(there, here))):
        for kind in KINDS:
            column = found[f"{side}{kind}"].copy()
            column[both] = flags[kind]
            found[f"{side}{kind}"] = column
    return found


def _flags(both: pd.DataFrame, side: str) -> Flags:
    values = {n: both[f"{side}_{n}"] for n in JUDGED}
    values["failure"] = values["failure"].notna()
    objects = {n: column.astype(object) for n, column in values.items()}
    return {n: o.where(o.notna(), np.nan).to_numpy(dtype=np.float64) for n, o in objects.items()}


def _column(kind: str, flags: NDArray[np.float64]) -> Any:
    known = flags == 1
    return pd.arrays.BooleanArray(known, np.isnan(flags)) if kind in MAY_BE_UNKNOWN else known


def _known(values: NDArray[np.bool_], *from_: NDArray[np.float64]) -> NDArray[np.float64]:
    """`values` as flags, nan where any of the flags `from_` is."""
    return np.where(np.isnan(np.stack(from_)).any(axis=0), np.nan, values)


def _judge(one: Flags, other: Flags) -> Flags:
    """Every kind, of `one` set of responses beside the `other`."""
    kept, recall, score, looping, cut = (
        one[n] for n in ("instruction_kept", "question_recall", "score", "looping", "cap_reached")
    )
    kept_there, recall_there, score_there = (
        other[n] for n in ("instruction_kept", "question_recall", "score")
    )
    broken = _known((kept == 0) & (kept_there == 1), kept, kept_there)
    drifted = _known((recall == 0) & (recall_there >= DRIFT_HAD), recall, recall_there)
    amnesia = np.fmax(broken, drifted)  # one that is unknown does not count
    fluent = (one["failure"] == 0) & (looping == 0) & (cut == 0)
    wrong = (score < RIGHT) & (score_there >= RIGHT) & fluent & (amnesia != 1)
    return {
        "looping": looping,
        "non_termination": cut,
        "amnesia": amnesia,
        "silent_failure": _known(wrong, score, score_there),
        "any": np.fmax(np.fmax(looping, cut), amnesia),
    }
