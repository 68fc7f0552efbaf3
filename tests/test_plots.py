"""Plots of many points: one look per press, nothing outside its axes, no unreadable names."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import image

from kvx.analyze import budget_plots, curves, plots
from kvx.analyze.budget_plots import by_budget, compressed_looks, excess_by_budget
from kvx.analyze.figures import drawn

PRESSES = [f"press_{i:02d}" for i in range(18)]
RATIOS = (0.5, 0.45, 0.4, 0.35, 0.3, 0.25)
TOKENS = (256, 128)


def tables(presses: list[str], tokens: tuple[int, ...] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`bin_stats` and `catastrophe_stats` of a full cache and of `presses` at every budget."""
    stats, derailed = [], []
    asked: list[tuple[str, str, float, float, str]] = [("none", "ratio", 1.0, 1.0, "1.0")]
    for press in presses:
        asked += [(press, "ratio", b, b, f"{b:g}") for b in RATIOS]
        asked += [(press, "tokens", float(t), t / 1000, f"{t}t") for t in tokens]
    for press, kind, number, budget, label in asked:
        point = {
            "variant_id": "v", "point_id": f"{press}-{label}", "press": press, "controller": "none",
            "seed": 0, "budget_kind": kind, "budget_asked": number, "budget": budget,
            "budget_label": label, "n_degenerate": 0,
        }  # fmt: skip
        for index in (-1, 0, 1):
            stats.append({
                **point, "bin": index, "bin_low_tokens": 100, "bin_high_tokens": 199,
                "mean": budget, "ci_low": budget / 2, "ci_high": min(1.0, budget * 1.5),
                "failure_rate": 0.1, "failure_ci_low": 0.0, "failure_ci_high": 0.3,
                "n_latency": 0, "primary": True, "metric": "exact_match",
            })  # fmt: skip
        for name in budget_plots.PANELS:
            derailed.append({**point, "bin": -1, "kind": name, "n_pairs": int(budget < 1),
                             "excess": 1 - budget, "excess_ci_low": 0.5 - budget,
                             "excess_ci_high": 1.2 - budget})  # fmt: skip
    return pd.DataFrame(stats), pd.DataFrame(derailed)


def test_no_two_of_49_presses_look_alike_and_order_does_not_matter() -> None:
    names = [f"p{i:02d}" for i in range(49)]
    assert len(set(drawn(names).values())) == 49
    assert drawn(names[::-1]) == drawn(names)


def test_many_presses_get_a_panel_each_and_every_whisker_lies_inside() -> None:
    stats, _ = tables(PRESSES)
    figure = by_budget(stats, "mean", curves.MEAN, compressed_looks(stats))
    panels = [axis for axis in figure.axes if axis.get_visible()]
    assert [axis.get_title() for axis in panels] == PRESSES
    for axis in panels:
        low, high = axis.get_ylim()
        left, right = axis.get_xlim()
        own = axis.lines[-1]
        assert np.array_equal(np.asarray(own.get_xdata()), RATIOS)
        assert right < 0.25
        assert left > 0.5
        ends = np.asarray(axis.collections[-1].get_offsets())
        assert (ends[:, 1] >= low).all()
        assert (ends[:, 1] <= high).all()


def test_fractions_and_numbers_of_tokens_have_axes_of_their_own() -> None:
    stats, _ = tables(PRESSES[:2], TOKENS)
    figure = by_budget(stats, "mean", curves.MEAN, compressed_looks(stats))
    fraction, tokens = figure.axes
    assert [t.get_text() for t in tokens.get_xticklabels()] == ["128", "256"]
    assert "entries kept" in tokens.get_xlabel()
    assert "fraction" in fraction.get_xlabel()


def test_names_at_the_ends_of_lines_do_not_overlap() -> None:
    stats, _ = tables(PRESSES[:6])  # all six end at the same height
    figure = by_budget(stats, "mean", curves.MEAN, compressed_looks(stats))
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 7  # and the full cache
    tops = sorted((box.y0, box.y1) for box in boxes)
    assert all(below[1] <= above[0] + 1 for below, above in itertools.pairwise(tops))


def test_a_press_has_its_colour_in_every_plot(tmp_path: Path) -> None:
    stats, derailed = tables(PRESSES[:3])
    found = compressed_looks(stats)
    budget = by_budget(stats, "mean", curves.MEAN, found)
    excess = excess_by_budget(plots.compressed(derailed), "excess", curves.EXCESS, found)
    length = plots.by_bin(stats, "mean", curves.MEAN, found)
    for figure in (budget, excess):
        said = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
        assert {name: said[name] for name in found} == {n: k.colour for n, k in found.items()}
    titles = {axis.get_title(): axis.title.get_color() for axis in length.axes}
    assert titles == {name: look.colour for name, look in found.items()}


def test_excesses_of_many_presses_are_a_heat_map_with_every_value() -> None:
    stats, derailed = tables(PRESSES)
    found = compressed_looks(stats)
    figure = excess_by_budget(plots.compressed(derailed), "excess", curves.EXCESS, found)
    panel = figure.axes[0]
    assert [t.get_text() for t in panel.get_yticklabels()] == PRESSES
    assert [t.get_text() for t in panel.get_xticklabels()] == [f"{b:g}" for b in RATIOS]
    assert [t.get_text() for t in panel.texts][:6] == [f"+{1 - b:.2f}"[:1] + f"{1 - b:.2f}"[1:]
                                                        for b in RATIOS]  # fmt: skip


@pytest.mark.parametrize("formats", [("png",), ("svg", "pdf")])
def test_files_are_the_same_each_time(tmp_path: Path, formats: tuple[str, ...]) -> None:
    stats, derailed = tables(PRESSES[:2], TOKENS)
    for folder in ("a", "b"):
        written = plots.draw_all(stats, derailed, tmp_path / folder, 0.95, formats)
        assert {path.suffix[1:] for path in written} == set(formats)
        assert set(plots.expected(tmp_path / folder, {"v"}, formats)) <= set(written)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    if formats == ("png",):
        assert image.imread(tmp_path / "a/acc_by_budget.png").shape[2] == 4


def test_a_full_cache_alone_is_drawn(tmp_path: Path) -> None:
    stats, derailed = tables([])
    assert len(plots.draw_all(stats, derailed, tmp_path, 0.95)) == 3
