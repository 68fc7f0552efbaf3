"""python -m kvx.score: score the answers of an experiment and name its failures."""

from kvx.cli.command import stage
from kvx.config.schema import Config


def score(points: list[Config]) -> None:
    from kvx.score.build import score_experiment

    score_experiment(points[0])


main = stage("score", score, aggregates=True)
