"""Cutting tables by point and bin gives what filtering the frame gives."""

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from kvx.analyze.columns import ALL_BINS, ByPoint, by_bin, by_metric
from kvx.analyze.naming import differences

ROW = st.tuples(
    st.sampled_from("abc"), st.integers(0, 3), st.sampled_from(["f1", "em"]), st.floats(0, 1)
)


@given(st.lists(ROW, max_size=40))
def test_a_cut_holds_the_rows_of_its_point_bin_and_metric(rows: list[tuple[object, ...]]) -> None:
    frame = pd.DataFrame(rows, columns=["point_id", "bin", "metric", "score"])
    frame["primary"] = frame["metric"] == "em"
    cut = ByPoint(frame, ["bin", "metric", "primary", "score"])
    for point_id in "abcd":
        mine = frame[frame["point_id"] == point_id]
        found = dict(by_bin(cut.of(point_id)))
        assert set(found) == {*mine["bin"], ALL_BINS}
        for index, columns in found.items():
            here = mine if index == ALL_BINS else mine[mine["bin"] == index]
            assert columns["score"].tolist() == here["score"].tolist()
            for metric, primary, cell in by_metric(columns):
                assert primary == (metric == "em")
                expected = here.loc[here["metric"] == metric, "score"].to_numpy()
                assert np.array_equal(cell["score"], expected)


def test_a_label_stays_in_one_line_whatever_a_template_holds() -> None:
    configs = {"a": {"template": "{context}\nQ:"}, "b": {"template": "{context}\n"}}
    assert differences(configs) == {"a": r"template={context}\nQ:", "b": r"template={context}\n"}
