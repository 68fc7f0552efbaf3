"""An experiment's traces as a controller would have seen them, with forecasts of models that never
saw their prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.frames import load_experiment
from kvx.config import Config
from kvx.controller_config import OperatingPoint
from kvx.errors import UserError
from kvx.guard.loops import LoopDetector
from kvx.guard.simulation import Trace, observations
from kvx.simulate.controllers import Thresholds
from kvx.store.catalog import finished_points
from kvx.store.shards import read_inputs
from kvx.train import data as learning
from kvx.train_config import Labels


@dataclass(frozen=True)
class Recorded:
    """What is replayed. `about` [n]: point_id, cluster (a prompt, across its points), dataset,
    press, budget, degenerate. `cards` [n]: the thresholds of the model that made a trace's
    forecast. `source`: a sentence on where the forecasts come from.
    """

    traces: list[Trace]
    about: pd.DataFrame
    cards: list[Thresholds | None]
    source: str
