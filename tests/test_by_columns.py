"""What is done by columns gives what was said row by row."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from kvx.analyze.facts import keeps_another_number
from kvx.scoring.catastrophes import JUDGED, KINDS, flags_beside, pair
from kvx.scoring.loops import find_loop, may_loop

# few words, and tails that repeat: responses in which both rules find something
RESPONSE = st.tuples(
    st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 9), max_size=8),
    st.integers(0, 12),
).map(lambda parts: [*parts[0], *parts[1] * parts[2]])  # fmt: skip


@given(st.lists(RESPONSE, max_size=6))
def test_no_response_with_a_loop_is_passed_over(responses: list[list[int]]) -> None:
    starts = np.concatenate([[0], np.cumsum([len(r) for r in responses])]).astype(int)
    tokens = np.array([token for r in responses for token in r], dtype=np.int32)
    suspected = may_loop(tokens, starts)
    for response, suspect in zip(responses, suspected, strict=True):
        assert suspect or find_loop(response) is None


def test_a_run_that_two_responses_share_is_no_loop() -> None:
    tokens = np.tile(np.arange(30), 2)
    assert may_loop(tokens, np.array([0, 30, 60])).tolist() == [False, False]
    assert may_loop(tokens, np.array([0, 60])).tolist() == [True]


FLAG = st.sampled_from([True, False])
UNKNOWN = st.sampled_from([True, False, None])
SEEN = st.fixed_dictionaries(
    {
        "example_id": st.integers(0, 12), "looping": FLAG, "cap_reached": FLAG,
        "instruction_kept": UNKNOWN, "question_recall": st.sampled_from([0.0, 0.5, 1.0, None]),
        "score": st.sampled_from([0.0, 0.4, 1.0, None]),
        "failure": st.sampled_from(["TRUNCATED", None]),
    }
)  # fmt: skip
ROWS = st.lists(SEEN, min_size=1, max_size=12, unique_by=lambda row: row["example_id"])


def columns(rows: list[dict[str, object]]) -> dict[str, np.ndarray]:
    frame = pd.DataFrame(rows)
    flags = {n: frame[n].astype(object).where(frame[n].notna(), np.nan) for n in JUDGED}
    flags["failure"] = frame["failure"].notna()
    found = {name: flags[name].to_numpy(dtype=float) for name in JUDGED}
    return {"place": frame["example_id"].to_numpy(), **found}


@given(ROWS, ROWS)
def test_flags_by_place_are_those_of_the_paired_table(
    own: list[dict[str, object]], full: list[dict[str, object]]
) -> None:
    table = pair(
        pd.DataFrame(own).assign(point_id="a", loop_onset=None),
        pd.DataFrame(full).assign(point_id="b", loop_onset=None),
    ).set_index("example_id")
    found = flags_beside(columns(own), columns(full))
    for at, row in enumerate(own):
        for kind in KINDS:
            for name in (kind, f"twin_{kind}"):
                if row["example_id"] in table.index:
                    expected = table.loc[row["example_id"], name]
                    expected = np.nan if pd.isna(expected) else float(expected)
                else:
                    alone = {"looping": row["looping"], "non_termination": row["cap_reached"]}
                    alone["any"] = row["looping"] or row["cap_reached"]
                    expected = float(alone[name]) if name in alone else np.nan
                assert found[name][at] == expected or (
                    np.isnan(found[name][at]) and np.isnan(expected)
                )


def test_all_entries_with_less_of_each_are_what_was_asked() -> None:
    """ThinK keeps 100 entries and three quarters of their bytes; the second row keeps 90 of 75."""
    requests = pd.DataFrame({
        "kv_entries_nominal": [75.0, 75.0, 75.0, None],
        "kv_entries_effective": [100.0, 90.0, 75.6, None],
        "kv_bytes_nominal": [7500, 7500, 7500, None],
        "kv_bytes_effective": [7500, 9000, 7560, None],
    })  # fmt: skip
    assert keeps_another_number(requests).tolist() == [False, True, False, False]
