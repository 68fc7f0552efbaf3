"""python -m kvx.certify: the smallest budget of which it is certain enough that it loses little."""

from kvx.cli.command import stage
from kvx.config.schema import Config


def certify(points: list[Config]) -> None:
    from kvx.certify.build import certify_experiment

    certify_experiment(points[0])


main = stage("certify", certify, aggregates=True)
