"""python -m kvx.report: write report.md from the analysed tables."""

from kvx.cli.command import stage
from kvx.config.schema import Config


def report(points: list[Config]) -> None:
    from kvx.report.build import report_experiment

    report_experiment(points[0])


main = stage("report", report, aggregates=True)
