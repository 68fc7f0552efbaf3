"""What the documentation names exists: files, modules, configuration options and linked pages."""

import re
from pathlib import Path

import pytest

from kvx.analyze.build import TABLES
from kvx.cli.stages import STAGES, TOOLS
from kvx.config.folders import conf_dir, package_dir
from tests.test_structure import LAYERS

ROOT = package_dir().parent
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "findings").glob("*.md")]
)
pytestmark = pytest.mark.skipif(not PAGES, reason="installed without its documentation")


def of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def exists(name: str) -> bool:
    """Is `kvx.x.y` a module, or a name in one?"""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:n])
        file = (
            base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
        )
        if file.is_file():
            rest = parts[n:]
            return not rest or re.search(rf"\b{re.escape(rest[0])}\b", file.read_text()) is not None
    return False


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    if page.name == "CHANGELOG.md":  # older entries name what was there then
        text = text.partition("\n### Ids that change")[0]
    for path in re.findall(r"\b(?:kvx|conf|scripts|hydra_plugins)/[\w/.]*\w", text):
        if "mine" not in path and path != "kvx/models/smollm2":  # a user's; in the asset cache
            assert (ROOT / path).exists(), f"{of(page)} names {path}"
    for name in re.findall(r"(?<![\w/.@-])kvx(?:\.[A-Za-z_]\w*)+", text):
        if name not in ("kvx.metrics", "kvx.controllers"):  # groups of entry points
            assert exists(name), f"{of(page)} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=of)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    for target in [*links, *re.findall(r'<img src="([^"]+)"', text)]:
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{of(page)} links to {target}"


@pytest.mark.parametrize("group", ["press", "dataset", "controller", "model", "experiment"])
def test_the_usage_page_names_every_option(group: str) -> None:
    (row,) = re.findall(rf"^\| `{group}` \|.*$", (ROOT / "docs/usage.md").read_text(), re.M)
    for file in (conf_dir() / group).glob("*.yaml"):
        assert re.search(rf"\b{file.stem}\b", row), f"docs/usage.md: {group}={file.stem} is missing"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"]({name})" in index, f"docs/README.md leaves out {name}"


@pytest.mark.parametrize(("page", "lines"), [("README.md", 120), ("docs/architecture.md", 150)])
def test_pages_that_everybody_reads_are_short(page: str, lines: int) -> None:
    assert len((ROOT / page).read_text().splitlines()) <= lines


def test_the_architecture_page_has_the_order_of_packages() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    (line,) = re.findall(r"^ +(errors < .*)$", text, re.M)
    told = [tuple(names.strip().split(", ")) for names in line.split("<")]
    layers = [tuple(n for n in names if n != "__main__") for names in LAYERS]
    assert told == [("stages",) if "run" in names else names for names in layers]


def test_every_file_of_the_architecture_page_exists() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    here = [f.as_posix() for room in ("kvx", "tests") for f in (ROOT / room).rglob("*.py")]
    names = set(re.findall(r"[\w/]+\.py\b", text))
    assert len(names) > 50
    assert sorted(n for n in names if not any(f.endswith(f"/{n}") for f in here)) == []


def test_every_command_is_named() -> None:
    text = (ROOT / "docs/usage.md").read_text()
    assert [name for name in (*STAGES, *TOOLS) if f"`kvx {name}`" not in text] == []


def test_exists_knows_what_is_not_there() -> None:
    assert exists("kvx.config.schema.Config")
    assert not exists("kvx.validate")
    assert not exists("kvx.config.schema.NoSuchName")


def test_the_tables_of_an_experiment_are_listed_where_a_reader_looks() -> None:
    tree = (ROOT / "docs/results-format.md").read_text().split("```")[1]
    (python,) = re.findall(
        r"^\| `e\.tables\(\)` \|.*$", (ROOT / "docs/python.md").read_text(), re.M
    )
    for name in TABLES:
        assert f" {name}.parquet" in tree
        assert f"`{name}`" in python
