"""python -m kvx.all: prepare, run, score, analyze and report, skipping what is already there."""

from typing import TYPE_CHECKING

from kvx.cli.command import stage
from kvx.config.schema import Config

if TYPE_CHECKING:
    from kvx.run.pools import Pool


def all_stages(points: list[Config], pool: "Pool | None" = None) -> None:
    from kvx.all.pipeline import run_pipeline

    run_pipeline(points, pool)


main = stage("all", all_stages)
