"""Who works on a sweep: this process, processes of this machine, or SLURM jobs."""

from collections.abc import Sequence
from typing import Protocol

from kvx.points import Point
from kvx.run.units import Outcome, Unit


class Pool(Protocol):
    def check(self, points: Sequence[Point]) -> None:
        """Raises `UserError` for points that cannot be run, as far as this process can tell."""
        ...

    def slices(self, points: Sequence[Point]) -> int:
        """How many slices the examples should be cut into."""
        ...

    def run(self, units: Sequence[Unit]) -> list[Outcome]:
        """Work on all units (at least one); one outcome for each.

        Those that measure latency run alone and last. Raises `Submitted` if the work goes on
        without this process.
        """
        ...
