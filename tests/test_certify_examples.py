"""Certificates of a mean over examples: what is counted in texts, and what in examples."""

from pathlib import Path

import numpy as np
import pytest

from kvx.certify import build, page
from kvx.certify.certificate import Group
from kvx.certify.losses import PointLosses
from kvx.config.certify import Average, CertifyConfig
from kvx.stats.risk_control import BOUNDED, hoeffding_bentkus_p, prompts_needed
from kvx.store.catalog import PointRecord
from kvx.store.layout import Done

INFO = {"id": "p", "budget_label": "0.5", "budget": 0.5, "budget_tokens": None, "press": "knorm"}
POINT = PointRecord(Path("p"), INFO, Done(40, 0, {}, 0, "", {}))


@pytest.mark.parametrize("average", list(Average))
def test_how_many_prompts_would_do_is_counted_in_texts(average: Average) -> None:
    """20 texts of 2 examples, of which 7 lose all: 3.5 texts, whatever the mean is over."""
    lost = (np.arange(40) < 7).astype(float)
    texts = np.repeat([f"t{i}" for i in range(20)], 2).astype(object)
    losses = PointLosses(lost, texts, np.zeros(40, np.int64), np.full(40, "", dtype=object))
    settings = CertifyConfig(alpha=0.35, average=average)
    (row,) = build.tested([POINT], {"p": losses}, settings, 0.05, BOUNDED)
    needed = prompts_needed(3.5, 0.35, 0.05, hoeffding_bentkus_p)
    assert needed == 26
    assert row.reason == "with this loss in all it needs n ≥ 26 prompts"
    assert row.mean_loss == pytest.approx(7 / 40)
    _, _, line = page._table(Group(-1, 0, 9, 20, 0, (row,), BOUNDED.name, 2)).splitlines()
    counts = ["20", "3.5"] if average is Average.clusters else ["20", "40", "7"]
    assert [cell.strip() for cell in line.split("|")[2 : 2 + len(counts)]] == counts
