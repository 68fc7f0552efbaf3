"""report.html in a real browser: it opens, filters, shows answers; nothing in them is run."""

import base64
import contextlib
import hashlib
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from kvx.cli.command import run_stage
from kvx.report.page import assemble
from kvx.report.page.answers import Shown
from kvx.report.page.packing import packed
from tests.browser import browser  # noqa: F401  a fixture

SMALL = ("experiment=demo", "dataset.source.n_examples=100", "dataset.sampling.n_per_bin=8",
         "signals=full")  # fmt: skip
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked=1'> &amp;"
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small demo; 6 points of 40 prompts."""
    folder = tmp_path_factory.mktemp("demo")
    with contextlib.chdir(folder):
        assert run_stage("all", list(SMALL)) == 0
    return folder / "outputs/runs/demo/report.html"


@pytest.fixture
def opened(browser: Browser) -> Iterator[Open]:  # noqa: F811
    """Opens a page; afterwards nothing was complained of on its console."""
    complaints: list[str] = []

    def call(path: Path, fragment: str = "", **options: Any) -> Page:
        page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        page.on("console", lambda m: complaints.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(path.as_uri() + fragment)
        page.wait_for_selector("main:not([aria-busy])")
        return page

    yield call
    for context in browser.contexts:
        context.close()
    assert complaints == []


def embedded(page: Path, name: str) -> Any:
    found = re.search(rf'id="{name}"[^>]*>([^<]*)<', page.read_text(encoding="utf-8"))
    assert found is not None
    return json.loads(zlib.decompress(base64.b64decode(found[1])))


def shown(data: dict[str, Any]) -> Shown:
    n = len(data["prompts"]["id"])
    return Shown(packed(data), n, n, None)


def rows(page: Page) -> int:
    text = page.locator("#examples .count").inner_text()
    return int(text.split()[0].replace(",", ""))


def test_the_page_is_one_small_file_that_needs_nothing_else(report: Path, opened: Open) -> None:
    text = report.read_text(encoding="utf-8")
    assert len(text.encode()) < assemble.MOST_BYTES
    assert not re.search(r'<(link|img|iframe)\b|\bsrc="(?!data:)|@import', text)
    page = opened(report)
    for section in ("verdict", "map", "curves", "lengths", "cost", "failures", "latency", "facts"):
        assert page.locator(f"#{section} h2").is_visible()
        if section not in ("verdict", "facts", "map"):
            assert page.locator(f"#{section} .plot svg").first.is_visible()
    assert "snapkv" in page.locator("#verdict").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_a_cell_opens_its_examples_beside_the_full_cache(report: Path, opened: Open) -> None:
    page = opened(report)
    cell = page.locator("#map td button[aria-label^='streaming at 0.2, all']")
    lost = int(re.search(r"(\d+) lost", cell.get_attribute("aria-label") or "")[1])  # type: ignore[index]
    cell.click()
    page.wait_for_selector("#examples .row")
    assert rows(page) == 40
    page.get_by_role("button", name=re.compile("^lost")).click()
    assert rows(page) == lost > 0
    cards = page.locator("#examples .card")
    expect(cards).to_have_count(2)
    assert "Full cache" in cards.nth(0).inner_text()
    assert "exact match 1.00" in cards.nth(0).inner_text()
    assert "exact match 0.00" in cards.nth(1).inner_text()
    assert cards.nth(0).locator("del").count() + cards.nth(1).locator("ins").count() > 0


def test_what_is_shown_is_what_was_answered(report: Path, opened: Open) -> None:
    data, figures = embedded(report, "samples"), embedded(report, "figures")
    answers, texts = data["answers"], data["texts"]
    assert len(answers["point"]) == 6 * 40
    page = opened(report)
    i = next(i for i, p in enumerate(answers["point"]) if figures["points"][p]["label"] == "0.5")
    point = figures["points"][answers["point"][i]]
    example = data["prompts"]["id"][answers["prompt"][i]]
    page = opened(report, f"#examples?point={point['id']}&bin=&show=all&example={example}")
    page.wait_for_selector("#examples .card")
    assert page.locator("#examples h3").first.inner_text().startswith(example)
    assert page.locator(".card .answer").nth(1).inner_text() == texts[answers["text"][i]]


def test_a_context_is_shaded_by_what_the_press_kept(report: Path, opened: Open) -> None:
    data, figures = embedded(report, "samples"), embedded(report, "figures")
    answers, texts, prompts = data["answers"], data["texts"], data["prompts"]
    i = next(
        i for i, p in enumerate(answers["point"])
        if figures["points"][p]["label"] == "0.2" and answers["kept"][i] is not None
    )  # fmt: skip
    point, prompt = figures["points"][answers["point"][i]], answers["prompt"][i]
    page = opened(
        report, f"#examples?point={point['id']}&bin=&show=all&example={prompts['id'][prompt]}"
    )
    page.locator("#examples summary", has_text="kept of it").click()
    context = page.locator("#examples .context")
    assert context.text_content() == texts[prompts["context"][prompt]]
    pieces = context.locator(".kept").evaluate_all(
        "all => all.map((one) => [one.dataset.level, one.textContent.length])"
    )
    levels = "".join(level * length for level, length in pieces)
    digits = texts[answers["kept"][i]]
    chars = prompts["chars"][prompt]
    assert levels == "".join(d * n for d, n in zip(digits, chars, strict=True))
    assert {"0", "9"} < set(levels)
    full = answers["point"].index(next(p for p, v in enumerate(figures["points"]) if v["full"]))
    assert answers["kept"][full] is None


def test_filters_narrow_what_is_listed(report: Path, opened: Open) -> None:
    page = opened(report)
    page.keyboard.press("/")
    page.wait_for_selector("#examples .row")
    assert rows(page) == 4 * 40  # the compressed points
    page.locator("#examples select").nth(0).select_option("snapkv")
    assert rows(page) == 2 * 40
    page.locator("#examples select").nth(1).select_option(label="0.2")
    assert rows(page) == 40
    page.locator("#examples select").nth(2).select_option("0")
    assert rows(page) == 8
    search = page.locator("#examples input")
    search.fill("no example says this")
    assert rows(page) == 0
    assert "No answer passes" in page.locator("#examples .detail").inner_text()
    search.fill("RECALL-")
    assert rows(page) == 8


def test_keys_move_through_map_and_examples(report: Path, opened: Open) -> None:
    page = opened(report)
    page.keyboard.press("m")
    first = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    second = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert first.startswith("snapkv at 0.5")
    assert second.startswith("streaming at 0.2")
    assert page.locator("#map output").inner_text() == second
    page.keyboard.press("Enter")
    page.wait_for_selector("#examples .row")
    one = page.locator("#examples h3").inner_text()
    page.keyboard.press("j")
    other = page.locator("#examples h3").inner_text()
    page.keyboard.press("k")
    assert page.locator("#examples h3").inner_text() == one != other
    page.keyboard.press("End")
    assert "example 40 of 40" in page.locator("#examples .detail").inner_text()
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()


def test_bold_cells_are_those_whose_shown_value_was_tested(
    report: Path, opened: Open, tmp_path: Path
) -> None:
    figures = embedded(report, "figures")
    table = figures["catastrophes"]
    table["clear"] = [False] * len(table["kind"])
    cells = zip(table["kind"], table["bin"], table["excess"], strict=True)
    one = next(
        i for i, (k, b, e) in enumerate(cells) if k == "looping" and b == 0 and e is not None
    )
    table["clear"][one] = True
    path = tmp_path / "report.html"
    path.write_text(assemble.page_of(figures, shown(embedded(report, "samples")), ""), "utf-8")
    page = opened(path)
    bold = page.locator("#map td button.clear")
    verdicts = figures["cells"]["verdict"]
    assert bold.count() == sum(v in ("loss", "gain") for v in verdicts) > 0
    page.get_by_role("button", name="failure rate").click()
    assert bold.count() == 0
    page.get_by_role("button", name="excess looping").click()
    assert bold.count() == 1
    assert bold.get_attribute("data-point") == str(table["point"][one])


def test_budgets_in_fractions_and_in_tokens_are_no_one_curve(
    report: Path, opened: Open, tmp_path: Path
) -> None:
    figures = embedded(report, "figures")
    for point in figures["points"]:
        if point["label"] == "0.2":
            point |= {"kind": "tokens", "asked": 60, "label": "60t"}
    figures["fits"] = []
    path = tmp_path / "report.html"
    path.write_text(assemble.page_of(figures, shown(embedded(report, "samples")), ""), "utf-8")
    page = opened(path)
    names = {"press": ["snapkv", "streaming"], "length": ["all lengths"]}
    for view, panels in names.items():
        page.get_by_role("button", name=f"a panel per {view}").click()
        titles = page.locator("#curves .plot text").all_text_contents()
        assert {*panels, *(f"{name} (budgets in tokens)" for name in panels)} <= set(titles)
        lines = page.locator("#curves .plot [aria-label=line] path")
        drawn = lines.evaluate_all("paths => paths.map((path) => path.getAttribute('d'))")
        assert max(line.count("L") for line in drawn) == 1  # from the full cache to 0.5, no further
        assert min(line.count("L") for line in drawn) == 0  # 60 tokens alone


def test_hostile_output_stays_text(report: Path, opened: Open, tmp_path: Path) -> None:
    figures, data = embedded(report, "figures"), embedded(report, "samples")
    data["texts"] = [f"{text} {HOSTILE}" for text in data["texts"]]
    data["prompts"]["id"] = [f"{HOSTILE} {i}" for i in data["prompts"]["id"]]
    for point in figures["points"]:
        point["series"] += HOSTILE
    figures |= {"name": HOSTILE, "verdict": [HOSTILE, f"**{HOSTILE}** `{HOSTILE}`"]}
    figures["variants"][0] |= {"model": HOSTILE, "metric": HOSTILE, "label": HOSTILE}
    path = tmp_path / "report.html"
    path.write_text(assemble.page_of(figures, shown(data), HOSTILE), encoding="utf-8")
    page = opened(path)
    page.keyboard.press("/")
    page.wait_for_selector("#examples .card")
    assert HOSTILE in page.locator("#examples .given").first.inner_text()
    assert HOSTILE in page.locator("h1").inner_text()
    assert HOSTILE in page.locator("#verdict").inner_text()
    page.locator("#map td button").first.click()
    page.locator("#examples summary", has_text="context").click()
    assert HOSTILE in page.locator("#examples .context").inner_text()
    assert page.locator("img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_dark_mode_follows_the_system_and_the_button(report: Path, opened: Open) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    line = "getComputedStyle(document.querySelector('#curves path[stroke^=var]')).stroke"
    light = opened(report)
    dark = opened(report, color_scheme="dark")
    assert light.evaluate(ground) != dark.evaluate(ground)
    assert light.evaluate(line) != dark.evaluate(line)
    for _ in range(2):
        light.keyboard.press("t")
    assert light.evaluate(ground) == dark.evaluate(ground)
    dark.emulate_media(media="print")
    assert dark.evaluate(ground) == "rgb(255, 255, 255)"
    assert not dark.locator("nav").is_visible()


def test_a_narrow_window_needs_no_sideways_scrolling(report: Path, opened: Open) -> None:
    page = opened(report, viewport={"width": 390, "height": 800})
    page.keyboard.press("/")
    page.wait_for_selector("#examples .row")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_ten_thousand_examples_are_listed_at_once(
    report: Path, opened: Open, tmp_path: Path
) -> None:
    """The rows in sight are elements, the others are not; 2 s is what a reader waits for."""
    figures, data = embedded(report, "figures"), embedded(report, "samples")
    n, times = len(data["prompts"]["id"]), 63
    for name, values in data["prompts"].items():
        copies = [[f"{v}-{k}" for v in values] if name == "id" else values for k in range(times)]
        data["prompts"][name] = [value for copy in copies for value in copy]
    for name, values in data["answers"].items():
        step = n if name == "prompt" else 0
        moved = [[v + step * k for v in values] if step else values for k in range(times)]
        data["answers"][name] = [value for copy in moved for value in copy]
    path = tmp_path / "report.html"
    path.write_text(assemble.page_of(figures, shown(data), ""), encoding="utf-8")
    page = opened(path)
    took_ms = page.evaluate(
        """() => new Promise((done) => {
          const began = performance.now();
          new MutationObserver(() => {
            if (document.querySelector("#examples .row")) done(performance.now() - began);
          }).observe(document.body, {childList: true, subtree: true});
          document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "/", bubbles: true}));
        })"""
    )
    assert rows(page) == 4 * 40 * times > 10_000
    assert page.locator("#examples .row").count() < 40
    assert took_ms < 2_000
    page.locator("#examples .rows").focus()
    page.keyboard.press("End")
    assert "example 10,080 of 10,080" in page.locator("#examples .detail").inner_text()


def test_examples_are_left_out_evenly_where_they_would_not_fit(
    report: Path, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "outputs"
    shutil.copytree(report.parents[2], runs)
    (runs / "runs/demo/report.html").unlink()
    data = embedded(report, "samples")
    whole = len(packed(data))
    for kept in {*data["answers"]["kept"]} - {None}:  # what is left out first
        data["texts"][kept] = ""
    data["prompts"]["chars"] = [None] * 40
    room = len(report.read_bytes()) - (whole - len(packed(data))) - 8_000
    monkeypatch.setattr(assemble, "MOST_BYTES", room)
    monkeypatch.setattr("kvx.report.page.answers.CONTEXT_CHARS", (None,))  # not by cut contexts
    assert run_stage("report", [*SMALL, f"paths.output={runs}"]) == 0
    smaller = runs / "runs/demo/report.html"
    assert len(smaller.read_bytes()) <= assemble.MOST_BYTES
    prompts = embedded(smaller, "samples")["prompts"]
    per_bin = [prompts["bin"].count(b) for b in range(5)]
    assert max(per_bin) - min(per_bin) <= 1
    page = opened(smaller)
    page.keyboard.press("/")
    page.wait_for_selector("#examples .row")
    said = page.locator("#examples .count").inner_text()
    assert f"of {len(prompts['id'])} prompts, drawn evenly from 40" in said
    assert "what presses kept of the contexts is left out" in said


def test_vendored_libraries_are_those_that_were_fetched() -> None:
    folder = assemble.HERE / "vendor"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert set(sums) == {p.name for p in folder.iterdir()} - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
