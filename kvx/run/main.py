"""python -m kvx.run: generate answers for every point; only what is missing is done."""

from kvx.cli import stage
from kvx.config import Config


def run(points: list[Config]) -> None:
    from kvx.run.bundle import run_points

    run_points(points)


main = stage("run", run)
