"""report.html of an experiment with controllers."""

import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser

from tests.browser import browser  # noqa: F401  a fixture
from tests.conftest import Kvx
from tests.test_catastrophes import FOLDER, write_experiment
from tests.test_guard_stats import SWEEP, steered, unguarded
from tests.test_report_page import embedded


def test_the_plot_of_memory_shows_the_points_whose_bytes_are_known(
    kvx: Kvx,
    browser: Browser,  # noqa: F811
) -> None:
    write_experiment(unguarded, *SWEEP, guard=steered)
    for stage in ("score", "analyze", "report"):
        outcome = kvx(stage)
        assert outcome.code == 0, outcome.err
    page = browser.new_page()
    page.goto((FOLDER / "report.html").absolute().as_uri())
    page.wait_for_selector("main:not([aria-busy])")
    dots = page.locator("svg[aria-label='Score over KV bytes'] g[aria-label=dot] path")
    assert dots.count() == 2  # the full cache and knorm at 0.5; of four points
    used = pq.read_table(FOLDER / "guard_stats.parquet").to_pandas()
    used = used[used["figure"] == "mean_budget"].dropna(subset="value")
    on_device = dict(zip(used["point_id"], used["value"], strict=True))
    points = embedded(FOLDER / "report.html", "figures")["points"]
    steered_ones = [p for p in points if p["controller"] != "none"]
    assert len(steered_ones) == 2
    for point in points:
        expected = on_device.get(point["id"], point["asked"])
        assert point["budget"] == pytest.approx(expected, rel=1e-5)
    assert {p["budget"] for p in steered_ones} != {0.5}
    page.close()
