"""Cutting tables by point and bin gives what filtering the frame gives."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from kvx.analyze.columns import ALL_BINS, by_bin, by_metric
from kvx.analyze.naming import differences

ROW = st.tuples(st.integers(0, 3), st.sampled_from(["f1", "em"]), st.floats(0, 1))


@given(st.lists(ROW, max_size=40), st.booleans())
def test_a_cut_holds_the_rows_of_its_bin_and_metric(
    rows: list[tuple[int, str, float]], ordered: bool
) -> None:
    rows = sorted(rows, key=lambda row: row[0]) if ordered else rows
    frame = pd.DataFrame(rows, columns=["bin", "metric", "score"]).astype({"bin": int})
    frame["primary"] = frame["metric"] == "em"
    found = dict(by_bin({name: frame[name].to_numpy() for name in frame.columns}))
    assert set(found) == {*frame["bin"], ALL_BINS}
    for index, columns in found.items():
        here = frame if index == ALL_BINS else frame[frame["bin"] == index]
        assert columns["score"].tolist() == here["score"].tolist()
        assert {metric for metric, _, _ in by_metric(columns)} == set(here["metric"])
        for metric, primary, cell in by_metric(columns):
            assert primary == (metric == "em")
            expected = here.loc[here["metric"] == metric, "score"].to_numpy()
            assert np.array_equal(cell["score"], expected)


def test_a_label_stays_in_one_line_whatever_a_template_holds() -> None:
    configs = {"a": {"template": "{context}\nQ:"}, "b": {"template": "{context}\n"}}
    assert differences(configs) == {"a": r"template={context}\nQ:", "b": r"template={context}\n"}
