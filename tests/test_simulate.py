"""python -m kvx.simulate: from finished points to a page, and what it refuses."""

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from kvx.cli import compose
from kvx.guard.detectors import find_loop
from kvx.points import Point
from kvx.run.bundle import plan
from kvx.simulate.load import loop_onsets
from kvx.store.files import write_text
from tests.conftest import Kvx

MODELLESS = ("simulate.controllers=[none,reactive,rule_based,always_safe,random]",
             "simulate.match=reactive", "simulate.n_boot=200", "simulate.random_repeats=3",
             "simulate.n_thresholds=4")  # fmt: skip
