"""What guarded answers really kept on the device, whatever budget they were asked at."""

from functools import cached_property

import pandas as pd

from kvx.analyze.columns import ALL_BINS
from kvx.analyze.frames import Experiment
from kvx.analyze.guard_stats import numbers, responses, use
from kvx.learning.live_stats import device_budget
from kvx.store.catalog import PointRecord


class DeviceBudgets:
    """Mean device budgets of an experiment's points, read when the first one is asked for."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment

    def of(self, point: PointRecord, index: int) -> tuple[float, int] | None:
        """The mean share of the prompt's entries in one bin (-1: all), and of how many responses.

        It is that of `guard_stats`. None without a controller, or without a response.
        """
        if not point.is_guarded:
            return None
        own = self._responses[self._responses["point_id"] == point.id]
        own = own if index == ALL_BINS else own[own["bin"] == index]
        own = own.assign(prompt=numbers(own["cluster"]))
        value, n = device_budget(use(own, self.experiment.events))
        return (value, n) if n else None

    @cached_property
    def _responses(self) -> pd.DataFrame:
        return responses(self.experiment)
