"""The tables with rows of every point, from one reading of its columns."""

from collections.abc import Sequence

from kvx.analyze import catastrophe_stats, goodput_stats
from kvx.analyze.bin_stats import Row, bin_stats, compared
from kvx.analyze.correction import correct_comparisons
from kvx.analyze.frames import Experiment
from kvx.config.analyze import AnalyzeConfig
from kvx.store.catalog import PointRecord, in_chunks
from kvx.store.forks import in_order


def point_rows(
    experiment: Experiment, config: AnalyzeConfig, n_processes: int = 1
) -> dict[str, list[Row]]:
    """Rows of `bin_stats`, `comparisons`, `goodput` and `catastrophe_stats`."""
    found: dict[str, list[Row]] = {}

    def rows_of(points: Sequence[PointRecord]) -> dict[str, list[Row]]:
        return {
            "bin_stats": bin_stats(experiment, config, points),
            "comparisons": compared(experiment, config, points),
            "goodput": goodput_stats.credits(experiment, config, points),
            "catastrophe_stats": catastrophe_stats.rates(experiment, config, points),
        }

    for part in in_order(rows_of, in_chunks(experiment.points), n_processes):
        for name, rows in part.items():
            found.setdefault(name, []).extend(rows)
    correct_comparisons(found["comparisons"], config.family)
    goodput_stats.corrected(found["goodput"], config)
    catastrophe_stats.corrected(found["catastrophe_stats"])
    return found
