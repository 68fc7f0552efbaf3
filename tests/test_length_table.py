"""The table of differences by length: which cells are bold, and what stands in each."""

import pandas as pd

from kvx.report.length_section import length_table

POINT = {
    "press": "snapkv", "controller": "none", "seed": 0, "budget": 0.5, "budget_label": "0.5",
    "budget_kind": "ratio", "budget_asked": 0.5, "n_degenerate": 0, "point_id": "p",
    "variant_id": "v", "primary": True, "metric": "exact_match", "higher_is_better": True,
    "n_pairs": 24, "n_clusters": 24, "n_won": 0, "p_holm": None, "interaction_p": None,
    "interaction_p_bh": None,
}  # fmt: skip


def row(index, difference, low, high, p, p_bh, **changed):
    lost = round(-24 * difference)
    return POINT | {
        "bin": index, "difference": difference, "ci_low": low, "ci_high": high, "n_lost": lost,
        "p": p, "p_bh": p_bh,
    } | changed  # fmt: skip


def table(*rows, n_bins=2):
    edges = [{"point_id": "p", "bin": i, "bin_low_tokens": 1000 * (i + 1),
              "bin_high_tokens": 1000 * (i + 2) - 1} for i in range(n_bins)]  # fmt: skip
    return length_table(pd.DataFrame(rows), pd.DataFrame(edges), 0.05)


def test_a_cell_is_bold_by_its_corrected_p():
    found = table(
        row(-1, -0.25, -0.4, -0.1, 0.01, 0.02, interaction_p=0.003, interaction_p_bh=0.012),
        row(0, -0.25, -0.45, -0.05, 0.03, 0.2),
        row(1, -0.38, -0.57, -0.15, 0.004, 0.01),
    )
    header, _, line = found.splitlines()
    assert header == "| press | budget | 1000–1999 | 2000–2999 | press × length p | corrected |"
    assert line == (
        "| snapkv | 0.5 | -0.25 [-0.45, -0.05] | **-0.38** [-0.57, -0.15] | 0.003 | 0.012 |"
    )


def test_a_bin_without_pairs_is_a_dash_and_one_bin_is_no_table():
    overall = row(-1, -0.25, -0.4, -0.1, 0.01, 0.02)
    assert "| – |" in table(overall, row(1, 0.0, -0.1, 0.1, 1.0, 1.0))
    assert table(overall, row(0, -0.25, -0.4, -0.1, 0.01, 0.02), n_bins=1) == ""
