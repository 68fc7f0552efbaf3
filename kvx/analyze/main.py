"""python -m kvx.analyze: bin statistics, paired comparisons, transitions, plots, SQLite."""

from kvx.cli.command import stage
from kvx.config.schema import Config


def analyze(points: list[Config]) -> None:
    from kvx.analyze.build import analyze_experiment

    analyze_experiment(points[0])


main = stage("analyze", analyze, aggregates=True)
