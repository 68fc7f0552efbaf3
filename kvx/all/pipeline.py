"""Every stage in order, for all points of a sweep at once."""

import logging
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from kvx.analyze.build import analyze_experiment, has_fidelity_only
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.naming import metric_title
from kvx.config.measures import Measure
from kvx.config.schema import Config
from kvx.errors import RunFailedError, UserError
from kvx.points import experiment_dir
from kvx.report.build import PAGE, report_experiment
from kvx.report.tables import mark, ordered
from kvx.report.wording import ADAPTED, DEGENERATE, interval, series_name
from kvx.run.bundle import run_points
from kvx.run.pools import Pool
from kvx.score.build import score_experiment
from kvx.store.catalog import answered_points

log = logging.getLogger(__name__)
WIDEST = 160  # a table is as wide as it needs to be: better wrapped than cut


def run_pipeline(configs: list[Config], pool: Pool | None = None) -> None:
    """Run all points, then score, analyse and report each experiment they belong to.

    Raises `RunFailedError` after the report if some points failed.
    """
    failure: RunFailedError | None = None
    try:
        run_points(configs, pool)
    except RunFailedError as error:
        failure = error
    for config in {experiment_dir(c): c for c in configs}.values():
        folder = experiment_dir(config)
        if Measure.quality not in config.measure.parts and not answered_points(folder):
            _without_answers(config, folder)
            continue
        try:
            score_experiment(config)
        except UserError:
            if failure is not None:  # not one point finished: that is the thing to say
                raise failure from None
            raise
        analyze_experiment(config)
        path = report_experiment(config)
        print_summary(
            pq.read_table(
                experiment_dir(config) / "bin_stats.parquet", partitioning=None
            ).to_pandas()
        )
        for made in (path, path.with_name(PAGE)):
            Console().print(f"report: {made}", soft_wrap=True, highlight=False)
    if failure is not None:
        raise failure


def _without_answers(config: Config, folder: Path) -> None:
    """Report what was compared with the full cache, if anything was."""
    if not has_fidelity_only(folder):
        log.info("all: %s holds latencies only; nothing to score", folder)
        return
    analyze_experiment(config)
    path = report_experiment(config)
    for made in (path, path.with_name(PAGE)):
        Console().print(f"report: {made}", soft_wrap=True, highlight=False)


def print_summary(stats: pd.DataFrame) -> None:
    """Accuracy per bin and budget, as a table on the terminal."""
    stats = stats[stats["primary"]]
    for _, frame in stats.groupby("variant_id", sort=False):
        first = frame.iloc[0]
        metric = metric_title(first["metric"])
        table = Table(
            title=f"{metric} of {first['variant'].replace(', ', ' on ', 1)}, by context tokens",
            box=None,
            pad_edge=False,
            title_justify="left",
            header_style="",
        )
        bins = frame[frame["bin"] != ALL_BINS].drop_duplicates("bin").sort_values("bin")
        highs = [row["bin_high_tokens"] for _, row in bins.iterrows()]
        headers = [*(f"< {high}" for high in highs[:-1]), f"≤ {highs[-1]}"]
        for name in ("press", "budget", *headers, "all bins"):
            table.add_column(name, justify="left" if name == "press" else "right", no_wrap=True)
        for _, group in ordered(frame).groupby("point_id", sort=False):
            rows = [row for _, row in group.sort_values("bin").iterrows()]
            overall, by_bin = rows[0], rows[1:]
            table.add_row(
                series_name(overall),
                f"{overall['budget_label']}{mark(overall)}",
                *(f"{row['mean']:.2f}" for row in by_bin),
                f"{overall['mean']:.2f} {interval(overall)}",
            )
        legend = []
        if frame["n_degenerate"].any():
            legend.append(f"{DEGENERATE} degenerate: there the press is not what it is meant to be")
        if frame["n_adapted"].fillna(0).any():
            legend.append(f"{ADAPTED} adapted: ranks by the model's own queries, unlike kvpress")
        if legend:
            table.caption = "\n".join(legend)
            table.caption_justify = "left"
        Console(width=max(Console().width, WIDEST)).print(table)
