"""report.md and report.html of an experiment that was compared with the full cache only."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from kvx.analyze.build import COMPARED_TABLES, inputs_hash, tables_of
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.fidelity_plots import whole
from kvx.config.schema import Config
from kvx.identity.hashing import digest, package_digest
from kvx.report import fidelity_section
from kvx.report.page.assemble import show, write_compared
from kvx.report.tables import not_applicable_table
from kvx.report.template import render
from kvx.report.versions import mixed_versions, reproducibility
from kvx.report.wording import percent
from kvx.store.atomic import write_text
from kvx.store.catalog import (
    FIDELITY_ONLY,
    PointRecord,
    compared_points,
    not_applicable_points,
    unfinished_points,
)

log = logging.getLogger(__name__)
STAMP = "<!-- kvx inputs {} -->"
PAGE = "report.html"


def write(config: Config, folder: Path) -> Path:
    """Write both unless they are there for the same table; the path of report.md.

    Raises `UserError` if the experiment is not analysed, or was before its points changed.
    """
    inputs = inputs_hash(folder, config.analyze)
    stats = tables_of(folder, inputs, COMPARED_TABLES)["fidelity_stats"]
    stamp = STAMP.format(digest([inputs, package_digest()], 16))
    path, page = folder / "report.md", folder / PAGE
    if page.exists() and path.exists() and path.read_text().rstrip().endswith(stamp):
        log.info("report: nothing to do → %s", path)
    else:
        told = _context(config, folder, compared_points(folder), stats)
        write_compared(page, told, stats, stamp)
        text = render(Path(__file__).with_name("fidelity.md.j2"), **told)
        write_text(path, f"{text.rstrip()}\n\n{stamp}\n")
        log.info("report: %s, %s", path, page)
    if config.report.open:
        show(page)
    return path


def _context(
    config: Config, folder: Path, points: list[PointRecord], stats: pd.DataFrame
) -> dict[str, Any]:
    several = stats["variant_id"].nunique() > 1
    missing = {i: w for i, w in unfinished_points(folder).items() if w != FIDELITY_ONLY}
    return {
        "name": folder.name, "n_points": len(points), "n_left_out": len(missing),
        "variants": [_variant(v, rows, several) for v, rows in stats.groupby("variant_id")],
        "verdict": list(fidelity_section.verdicts(stats, several)),
        "introduction": fidelity_section.INTRODUCTION,
        "degenerate": bool(stats["n_degenerate"].any()),
        "not_applicable": not_applicable_table(not_applicable_points(folder)),
        "warnings": [
            *mixed_versions(points),
            *(f"Point {i} is in no table: {w}." for i, w in missing.items()),
        ],
        "page": PAGE, "confidence": percent(config.analyze.confidence),
        "reproducibility": reproducibility(points, pd.Series(dtype=object)),
    }  # fmt: skip


def _variant(variant: Any, rows: pd.DataFrame, several: bool) -> dict[str, Any]:
    overall = whole(rows[rows["bin"] == ALL_BINS])
    first = overall.iloc[0]
    return {
        "id": variant, "label": first["variant"], "model": first["model"],
        "dataset": first["dataset"], "n_prompts": overall["n_prompts"].max(),
        "n_tokens": overall["n_tokens"].max(), "n_bins": rows["bin"].nunique() - 1,
        "folder": f"plots/{variant}" if several else "plots",
        **fidelity_section.tables(rows, str(variant)),
    }  # fmt: skip
