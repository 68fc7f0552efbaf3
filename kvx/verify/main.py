"""python -m kvx.verify: is this experiment fit to learn from?"""

from kvx.cli.command import stage
from kvx.config.schema import Config


def verify(points: list[Config]) -> None:
    from kvx.verify.build import verify_experiment

    verify_experiment(points[0])


main = stage("verify", verify, aggregates=True)
