"""kvx.compare: two results example by example, printed and written as Markdown, CSV and LaTeX."""

import logging
import re
from pathlib import Path

from kvx.compare import page, table
from kvx.compare.places import told_apart
from kvx.compare.results import Result
from kvx.compare.sides import read
from kvx.compare.table import Comparison
from kvx.config.schema import Config
from kvx.errors import UserError
from kvx.store.atomic import write_text

log = logging.getLogger(__name__)
LONGEST_NAME = 80  # characters of each side in a folder's name


def compare_results(config: Config) -> Path:
    """Print the table and write compare.md, compare.csv, compare.tex and examples.csv; its folder.

    Raises `UserError` if a side cannot be read, and if the sides have no example in common.
    """
    asked, runs = config.compare, Path(config.paths.output) / "runs"
    for name in ("a", "b"):
        if getattr(asked, name) is None:
            raise UserError(f"compare.{name}: give two results, as in kvx compare A B; see --help")
    assert asked.a is not None
    assert asked.b is not None
    left = read("compare.a", asked.a, runs, asked.metric, asked.cluster)
    right = read("compare.b", asked.b, runs, asked.metric_b or asked.metric, asked.cluster)
    left, right = told_apart(left, right)
    found, apart = compared(left, right, asked.metric, asked.metric_b, config.analyze.confidence)
    if not found:
        raise UserError(none_in_common(asked.a, asked.b, left, right))
    folder = Path(asked.output or Path(config.paths.output) / "compare" / _name(asked.a, asked.b))
    rows = table.frame(found)
    told = page.Page(asked.a, asked.b, found, rows, apart, config.analyze.confidence)
    write_text(folder / "compare.md", told.markdown())
    write_text(folder / "compare.tex", told.latex())
    write_text(folder / "compare.csv", rows.to_csv(index=False))
    write_text(folder / "examples.csv", table.example_frame(found).to_csv(index=False))
    print(told.text(), flush=True)
    log.info("compare: %s", folder)
    return folder


def compared(
    left: list[Result],
    right: list[Result],
    metric: str | None,
    metric_b: str | None,
    confidence: float,
) -> tuple[list[Comparison], int]:
    """Every match with common examples, and how many matches have none."""
    found = [
        table.compare(a, b, metric, metric_b, confidence) for a, b in table.matches(left, right)
    ]
    kept = [c for c in found if c is not None]
    return kept, len(found) - len(kept)


def none_in_common(a: str, b: str, left: list[Result], right: list[Result]) -> str:
    """Why nothing can be compared, in a sentence."""
    if not table.matches(left, right):
        return f"{a} and {b} have no point in common: no press, budget or task is in both"
    sizes = f"{len(left[0].examples):,} and {len(right[0].examples):,}"
    return (
        f"{a} and {b} have no example in common ({sizes} examples): neither ids, nor prompts, nor "
        "questions with their reference answers agree"
    )


def _name(a: str, b: str) -> str:
    sides = (re.sub(r"[^\w.-]+", "-", side).strip("-.")[-LONGEST_NAME:] for side in (a, b))
    return "--".join(sides)
