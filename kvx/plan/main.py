"""python -m kvx.plan: what a run would do, what is done already, how large and how long it is."""

from typing import TYPE_CHECKING

from kvx.cli.command import stage
from kvx.config.schema import Config

if TYPE_CHECKING:
    from kvx.run.pools import Pool


def plan(points: list[Config], pool: "Pool | None" = None) -> None:
    from kvx.plan.build import print_plan

    print_plan(points, pool)


main = stage("plan", plan)
