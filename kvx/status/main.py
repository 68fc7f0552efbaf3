"""python -m kvx.status: how far an experiment is, from what is on disk; works while it runs.

Exit 0: everything that was asked for is there. 3: something is left to do. 1: nothing is left, but
some points failed.
"""

from kvx.cli.command import stage
from kvx.config.schema import Config


def status(points: list[Config]) -> None:
    from kvx.status.build import print_status

    print_status(points[0])


main = stage("status", status, aggregates=True)
