"""report.md (short), details.md and report.html: tables as sentences, tables and plots."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from kvx.analyze import plots, tradeoff
from kvx.analyze.build import (
    TABLES,
    check_analysed,
    has_fidelity_only,
    inputs_hash,
    tables_of,
)
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.depth_grid import PREFIX
from kvx.analyze.leaders import ALL_VARIANTS
from kvx.analyze.naming import metric_title
from kvx.config.analyze import AnalyzeConfig
from kvx.config.schema import Config
from kvx.engines.base import BudgetProof
from kvx.guard.controllers import Hazard
from kvx.identity.hashing import digest, package_digest
from kvx.learning.caveats import GuardedPoint, caveats
from kvx.points import experiment_dir
from kvx.report import (
    catastrophe_section,
    controller_tables,
    equivalence_section,
    fidelity_report,
    fidelity_section,
    goodput_section,
    guard_section,
    leaders_section,
    proof_section,
    samples_section,
    tables,
    task_section,
)
from kvx.report.findings import findings
from kvx.report.length_section import length_table
from kvx.report.page.assemble import show, write_page
from kvx.report.summary import summary_table, verdict_sentences
from kvx.report.template import render
from kvx.report.versions import mixed_versions, reproducibility
from kvx.report.warnings import not_applicable, warnings
from kvx.report.wording import POINTS_OF, RANKS_OF, percent, token_range
from kvx.stats.clustered import LEAST_CLUSTERS
from kvx.store.atomic import write_text
from kvx.store.catalog import (
    PointRecord,
    finished_points,
    latency_of,
    not_applicable_points,
    read_columns,
    requests_of,
    unfinished_points,
)

log = logging.getLogger(__name__)
STAMP = "<!-- kvx inputs {} -->"
PAGE = "report.html"

# the columns of requests that the report tells of
TOLD = (
    "point_id", "budget_verified", "budget_proof", "kv_entries_nominal", "kv_entries_effective",
    "kv_bytes_nominal", "kv_bytes_effective", "degenerate", "degenerate_reason", "adapted",
    "made_with",
)  # fmt: skip


def report_experiment(config: Config) -> Path:
    """Write report.md, details.md and report.html unless they are there for the same tables; the
    path of the first.

    Raises `UserError` if the experiment is not analysed, or was before its points changed.
    """
    folder = experiment_dir(config)
    if has_fidelity_only(folder):
        return fidelity_report.write(config, folder)
    points = finished_points(folder)
    path, details, page = folder / "report.md", folder / "details.md", folder / PAGE
    inputs = inputs_hash(folder, config.analyze)
    check_analysed(folder, inputs)
    known = list(caveats(_forecasting(points, config)))
    stamp = STAMP.format(digest([inputs, known, package_digest()], 16))
    written = all(file.exists() for file in (path, details, page))
    if written and path.read_text().rstrip().endswith(stamp):
        log.info("report: nothing to do → %s", path)
        if config.report.open:
            show(page)
        return path
    frames = tables_of(folder, inputs)
    context = _context(config, points, folder, known, **frames)
    output, confidence = Path(config.paths.output), config.analyze.confidence
    write_page(page, context, points, frames, output, confidence, stamp)
    for file, template in ((details, "details.md.j2"), (path, "report.md.j2")):
        text = render(Path(__file__).with_name(template), **context)
        write_text(file, f"{text.rstrip()}\n\n{stamp}\n")
    log.info("report: %s, %s", path, page)
    if config.report.open:
        show(page)
    return path


def _context(
    config: Config,
    points: list[PointRecord],
    folder: Path,
    known: list[str],
    bin_stats: pd.DataFrame,
    comparisons: pd.DataFrame,
    transitions: pd.DataFrame,
    dose_response: pd.DataFrame,
    catastrophe_stats: pd.DataFrame,
    guard_stats: pd.DataFrame,
    controller_stats: pd.DataFrame,
    leaders: pd.DataFrame,
    equivalence: pd.DataFrame,
    goodput: pd.DataFrame,
    samples: pd.DataFrame,
    numerics: pd.DataFrame,
    fidelity_stats: pd.DataFrame,
    task_means: pd.DataFrame,
    **_: pd.DataFrame,  # tables that the page has no section for
) -> dict[str, Any]:
    several = bin_stats["variant_id"].nunique() > 1
    overall = bin_stats[bin_stats["primary"] & (bin_stats["bin"] == ALL_BINS)]
    failures = read_columns(points, "failures", ["point_id", "error_type"])
    seen = read_columns(points, "catastrophes", ["point_id", "unit"])
    alone = latency_of(points)
    requests = requests_of(points, TOLD)
    equivalence, goodput = (tables.marked(table, overall) for table in (equivalence, goodput))
    found = proof_section.proofs(requests)
    left_out, used = unfinished_points(folder), guard_section.device_budgets(guard_stats)
    apart = not_applicable_points(folder)
    return {
        "name": folder.name, "n_points": len(points), "n_left_out": len(left_out),
        "n_requests": overall["n_requests"].sum(),
        "n_responses": overall["n_responses"].sum(),
        "variants": _variants(
            bin_stats, comparisons, catastrophe_stats, guard_stats, failures, seen, alone, points,
            config.analyze, found, leaders, equivalence, goodput, samples, fidelity_stats,
        ),
        "benchmarks": list(task_section.benchmarks(task_means)),
        "depth_plots": sorted(f.name for f in (folder / "plots").glob(f"{PREFIX}_*.png")),
        "leaders_of_all": leaders_section.leaders_table(leaders, ALL_VARIANTS),
        "proof": [*proof_section.sentences(found), *proof_section.uncompressed(overall)],
        "not_applicable": tables.not_applicable_table(apart),
        "controllers": _controllers(controller_stats),
        "verdict": [
            *leaders_section.verdicts(leaders, several),
            *equivalence_section.verdicts(equivalence, config.analyze, several),
            *samples_section.noise(
                numerics, equivalence, comparisons, 1 - config.analyze.confidence
            ),
            *verdict_sentences(comparisons, transitions, config.analyze, dose_response),
            *fidelity_section.verdicts(fidelity_stats, several),
        ],
        "page": PAGE, "guarded": bool(len(guard_stats)),
        "latency": bool((overall["n_latency"] > 0).any()),
        "findings": [
            *leaders_section.verdicts(leaders, several),
            *equivalence_section.verdicts(equivalence, config.analyze, several),
            *goodput_section.verdicts(goodput, 1 - config.analyze.confidence, several),
            *samples_section.verdicts(samples),
            *fidelity_section.verdicts(fidelity_stats, several),
            *samples_section.noise(
                numerics, equivalence, comparisons, 1 - config.analyze.confidence
            ),
            *findings(
                bin_stats, comparisons, transitions, used, config.analyze, dose_response
            ),
        ],
        "warnings": [
            *mixed_versions(points), *not_applicable(apart),
            *warnings(bin_stats, comparisons, left_out, known, config.analyze, requests),
        ],
        "table_names": ", ".join(f"`{name}.parquet`" for name in sorted(TABLES)),
        "fidelity_introduction": fidelity_section.INTRODUCTION,
        "goodput_introduction": goodput_section.INTRODUCTION,
        "confidence": percent(config.analyze.confidence),
        "points_of_family": POINTS_OF[config.analyze.family],
        "ranks_of_family": RANKS_OF[config.analyze.family],
        "drop": f"{config.analyze.transition_drop:g}",
        "reproducibility": reproducibility(points, requests["made_with"]),
    }  # fmt: skip


def _forecasting(points: list[PointRecord], config: Config) -> Iterator[GuardedPoint]:
    """The points whose controllers have a forecast and whose prompts still exist."""
    for point in points:
        made = point.info["config"]
        manifest = point.manifest_dir(Path(config.paths.output)) / "manifest.json"
        if made["controller"].get("kind") == Hazard.kind and manifest.is_file():
            entries = json.loads(manifest.read_text())["entries"]
            yield GuardedPoint(
                str(point.info["controller"]),
                made["guard"]["model"],
                str(point.info["model"]),
                tuple(str(e["cluster"]) for e in entries),
            )


def _controllers(stats: pd.DataFrame) -> dict[str, str]:
    """The tables of controllers over all points; empty without controllers."""
    if stats.empty:
        return {}
    return {
        "prevented": controller_tables.prevented_table(stats),
        "price": controller_tables.price_table(stats),
        "plot": tradeoff.NAME if len(tradeoff.shown(stats)) else "",
    }


def _variants(
    bin_stats: pd.DataFrame,
    comparisons: pd.DataFrame,
    catastrophe_stats: pd.DataFrame,
    guard_stats: pd.DataFrame,
    failures: pd.DataFrame,
    seen: pd.DataFrame,
    alone: pd.DataFrame,
    points: list[PointRecord],
    config: AnalyzeConfig,
    found: dict[str, list[BudgetProof]],
    leaders: pd.DataFrame,
    equivalence: pd.DataFrame,
    goodput: pd.DataFrame,
    samples: pd.DataFrame,
    fidelity_stats: pd.DataFrame,
) -> list[dict[str, Any]]:
    described = []
    several = bin_stats["variant_id"].nunique() > 1
    for variant, frame in bin_stats[bin_stats["primary"]].groupby("variant_id", sort=False):
        overall = tables.ordered(frame[frame["bin"] == ALL_BINS])
        compared = comparisons[comparisons["variant_id"] == variant]
        derailed = catastrophe_stats[catastrophe_stats["variant_id"] == variant]
        guarded = guard_stats[guard_stats["variant_id"] == variant]
        info = next(p.info for p in points if p.info["variant_id"] == variant)
        query_aware = info["config"]["prompt"]["query_aware"]
        budgets = overall.sort_values("budget", ascending=False)["budget_label"]
        described.append(
            {
                "id": variant, "label": overall["variant"].iloc[0], "model": info["model"],
                "dataset": info["dataset"], "presses": ", ".join(dict.fromkeys(overall["press"])),
                "budgets": ", ".join(dict.fromkeys(budgets)),
                "n": info["manifest"]["n_requests"], "n_bins": frame["bin"].nunique() - 1,
                "tokens": token_range(overall.iloc[0]),
                "metric": metric_title(overall["metric"].iloc[0]),
                "sees": f"the context{' and' if query_aware else ', not'} the question",
                "methods": _methods(frame), "paired_methods": _methods(compared),
                "degenerate": bool(overall["n_degenerate"].any()),
                "budget_table": tables.budget_table(
                    overall, found, guard_section.device_budgets(guarded)
                ),
                "summary_table": summary_table(
                    overall, compared, frame, config, guard_section.device_budgets(guarded)
                ),
                "accuracy_table": tables.accuracy_table(frame),
                "comparison_table": tables.comparison_table(compared),
                "length_table": length_table(compared, frame, 1 - config.confidence),
                "equivalence_table": equivalence_section.equivalence_table(
                    equivalence[equivalence["variant_id"] == variant]
                ),
                "samples_table": samples_section.samples_table(
                    samples[samples["variant_id"] == variant],
                    set(overall.loc[overall["n_degenerate"] > 0, "point_id"]),
                ),
                "leaders_table": leaders_section.leaders_table(leaders, str(variant)),
                "failure_table": tables.failure_table(overall, compared, failures),
                "catastrophe_table": catastrophe_section.catastrophe_table(
                    derailed, 1 - config.confidence
                ),
                "catastrophe_notes": catastrophe_section.notes(
                    derailed, seen[seen["point_id"].isin(overall["point_id"])]
                ),
                "catastrophe_plot": bool(derailed["excess"].notna().any()),
                "plots_leave_out": len(plots.plain(overall)) < len(overall),
                "fidelity": fidelity_section.tables(fidelity_stats, str(variant)),
                "guarded": bool(len(guarded)), "guard_notes": guard_section.notes(guarded),
                "guard_prevented_table": guard_section.prevented_table(guarded),
                "guard_effect_table": guard_section.effect_table(guarded),
                "guard_cost_table": guard_section.cost_table(guarded),
                "cost_table": tables.cost_table(overall),
                "goodput_table": goodput_section.goodput_table(
                    goodput[goodput["variant_id"] == variant]
                ),
                "plots": f"plots/{variant}" if several else "plots",
                "latency_how": _how_measured(alone[alone["point_id"].isin(overall["point_id"])]),
                "latency_table": tables.latency_table(overall),
                "latency_plot": bool(frame["latency_p50_s"].notna().any()),
            }
        )  # fmt: skip
    return described


def _how_measured(alone: pd.DataFrame) -> str | None:
    """How the latencies of a variant were measured; None if they were not."""
    if not len(alone):
        return None
    per_bin = alone.groupby(["point_id", "bin"])["example_id"].nunique()
    repeats = alone.groupby(["point_id", "example_id"])["repeat"].nunique()
    return (
        "Measured apart from the answers: one request alone at batch 1, after a warm-up of "
        f"{_several(alone['warmup'])} per point; examples per bin: {_several(per_bin)}, each "
        f"measured {_several(repeats)} times; on {' and '.join(sorted(alone['machine'].unique()))}."
    )


def _several(numbers: "pd.Series[int]") -> str:
    """`3`, or `2–3` where points differ."""
    low, high = numbers.min(), numbers.max()
    return f"{low}" if low == high else f"{low}–{high}"


def _methods(table: pd.DataFrame) -> str:
    """The interval methods used in a table, in words."""
    names = {
        "clopper_pearson": "Clopper–Pearson for 0/1 scores",
        "korn_graubard": "Korn and Graubard's over clusters",
        "newcombe": "Newcombe's for 0/1 scores",
        "cluster_t": "Student's t over clusters",
        "all_alike": "where all agree, Clopper–Pearson's with a cluster as a trial",
        "too_few_clusters": f"none below {LEAST_CLUSTERS} clusters",
    }
    used = [text for method, text in names.items() if (table["ci_method"] == method).any()]
    return "; ".join(used) or "none"
