"""hydra/launcher=kvx: everything in this process, one unit after the other."""

from collections.abc import Sequence

from kvx.points import Point
from kvx.run.progress import Meter
from kvx.run.units import Outcome, Unit, by_engine
from kvx.run.worker import engine_of, run_unit


class InProcess:
    def check(self, points: Sequence[Point]) -> None:
        for group in by_engine(points):
            engine_of(group[0].config).check(group)

    def slices(self, points: Sequence[Point]) -> int:
        return 1

    def run(self, units: Sequence[Unit]) -> list[Outcome]:
        outcomes = []
        with Meter(units, units[0].configs[0].run.progress) as meter:
            for unit in units:
                meter.begin(unit)
                outcomes.append(run_unit(unit, meter))
        return outcomes
