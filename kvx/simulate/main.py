"""python -m kvx.simulate: what controllers would have done to an experiment's traces, at best."""

from kvx.cli.command import stage
from kvx.config.schema import Config


def simulate(points: list[Config]) -> None:
    from kvx.simulate.build import simulate_experiment

    simulate_experiment(points[0])


main = stage("simulate", simulate, aggregates=True)
