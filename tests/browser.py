"""Debian's Chromium through Playwright, for pages that a user opens."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Skips without Chromium; with KVX_REQUIRE_BROWSER=1 it fails instead."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = "no chromium here; run scripts/install_chromium.sh"
        if os.environ.get("KVX_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        # a container's root has no sandbox; nothing of the network is opened
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
