"""python -m kvx.train: the hazard model of an experiment, its card, and how good it is."""

from kvx.cli.command import stage
from kvx.config.schema import Config


def train(points: list[Config]) -> None:
    from kvx.train.build import train_experiment

    train_experiment(points[0])


main = stage("train", train, aggregates=True)
