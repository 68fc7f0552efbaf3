"""What a number of prompts can find, before it is run."""

import numpy as np
import pytest
from scipy.stats import binom

from kvx.stats.paired import mcnemar_exact
from kvx.stats.power import (
    design_effect,
    detectable_difference,
    margin_within_reach,
    pairs_for_margin,
)


def test_known_figures() -> None:
    assert detectable_difference(20, 0.2) == pytest.approx(0.28, abs=0.005)
    assert detectable_difference(120, 0.2) == pytest.approx(0.114, abs=0.001)
    assert pairs_for_margin(0.02, 0.1) == 1546
    assert margin_within_reach(1546, 0.1) == pytest.approx(0.02, abs=1e-5)


@pytest.mark.parametrize("n", [120, 500])
def test_mcnemar_finds_the_detectable_difference_in_about_four_of_five(n: int) -> None:
    """The exact test's power, over all numbers of discordant pairs and of losses among them."""
    discordance = 0.2
    difference = detectable_difference(n, discordance)
    lost = (1 + difference / discordance) / 2
    power = 0.0
    for differ in range(n + 1):
        counts = np.arange(differ + 1)
        found = [mcnemar_exact(int(k), differ - int(k)) < 0.05 for k in counts]
        chance = binom.pmf(counts, differ, lost)[found].sum()
        power += binom.pmf(differ, n, discordance) * chance
    assert 0.72 < power < 0.88


def test_clusters_cost_prompts() -> None:
    assert design_effect([1] * 50, 0.5) == 1
    assert design_effect([10] * 5, 0.5) == pytest.approx(5.5)
    assert design_effect([19, 1], 0.5) > design_effect([10, 10], 0.5)
    assert design_effect([10] * 5, 0.0) == 1


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="n_pairs=0"):
        detectable_difference(0, 0.2)
    with pytest.raises(ValueError, match="discordance=1"):
        detectable_difference(10, 1.0)
    with pytest.raises(ValueError, match="margin=0"):
        pairs_for_margin(0.0, 0.2)
    with pytest.raises(ValueError, match="at least one pair"):
        design_effect([], 0.2)
    with pytest.raises(ValueError, match="correlation=2"):
        design_effect([1], 2)
