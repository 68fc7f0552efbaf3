"""Every stage in order, for all points of a sweep at once."""

import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from kvx.analyze.build import analyze_experiment
from kvx.analyze.frames import ALL_BINS
from kvx.config import Config
from kvx.errors import RunFailedError, UserError
from kvx.points import experiment_dir
from kvx.report.build import report_experiment
from kvx.report.findings import interval, series_name
from kvx.run.bundle import run_points
from kvx.score.build import score_experiment


def run_pipeline(configs: list[Config]) -> None:
    """Run all points, then score, analyse and report each experiment they belong to.

    Raises `RunFailedError` after the report if some points failed.
    """
    failure: RunFailedError | None = None
    try:
        run_points(configs)
    except RunFailedError as error:
        failure = error
    for config in {experiment_dir(c): c for c in configs}.values():
        try:
            score_experiment(config)
        except UserError:
            if failure is not None:  # not one point finished: that is the thing to say
                raise failure from None
            raise
        analyze_experiment(config)
        path = report_experiment(config)
        print_summary(pq.read_table(experiment_dir(config) / "bin_stats.parquet").to_pandas())
        Console().print(f"report: {path}", soft_wrap=True, highlight=False)
    if failure is not None:
        raise failure


def print_summary(stats: pd.DataFrame) -> None:
    """Accuracy per bin and budget, as a table on the terminal."""
    stats = stats[stats["primary"]]
    for _, frame in stats.groupby("variant_id", sort=False):
        first = frame.iloc[0]
        bins = frame[frame["bin"] != ALL_BINS].drop_duplicates("bin").sort_values("bin")
        table = Table(
            title=f"{first['metric'].replace('_', ' ')} of {first['model']} on {first['dataset']}, by context tokens"
        )
        table.add_column("press")
        table.add_column("budget", justify="right")
        for _, row in bins.iterrows():
            table.add_column(f"{row['bin_low_tokens']}–{row['bin_high_tokens']}", justify="right")
        table.add_column("all bins", justify="right")
        ordered = frame.sort_values(["press", "budget"], ascending=[True, False])
        for _, group in ordered.groupby("point_id", sort=False):
            rows = group.set_index("bin")
            means = [f"{rows.at[b, 'mean']:.2f}" for b in bins["bin"]]
            overall = f"{rows.at[ALL_BINS, 'mean']:.2f} {interval(rows.loc[ALL_BINS])}"
            table.add_row(
                series_name(group.iloc[0]), group.iloc[0]["budget_label"], *means, overall
            )
        Console().print(table)
