"""python -m kvx.run: generate answers for every point; only what is missing is done."""

from typing import TYPE_CHECKING

from kvx.cli.command import stage
from kvx.config.schema import Config

if TYPE_CHECKING:
    from kvx.run.pools import Pool


def run(points: list[Config], pool: "Pool | None" = None) -> None:
    from kvx.run.bundle import run_points

    run_points(points, pool)


main = stage("run", run)
