"""python -m kvx.all: prepare, run, score, analyze and report, skipping what is already there."""

from kvx.cli import stage
from kvx.config import Config


def all_stages(points: list[Config]) -> None:
    from kvx.all.pipeline import run_pipeline

    run_pipeline(points)


main = stage("all", all_stages)
