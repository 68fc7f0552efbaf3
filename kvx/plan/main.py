"""python -m kvx.plan: what a run would do, what is done already, how large and how long it is."""

from kvx.cli import stage
from kvx.config import Config


def plan(points: list[Config]) -> None:
    from kvx.plan.build import print_plan

    print_plan(points)


main = stage("plan", plan)
