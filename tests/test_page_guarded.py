"""report.html of an experiment with controllers."""

from playwright.sync_api import Browser

from tests.browser import browser  # noqa: F401  a fixture
from tests.conftest import Kvx
from tests.test_catastrophes import FOLDER, write_experiment
from tests.test_guard_stats import SWEEP, steered, unguarded


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
    page.close()
