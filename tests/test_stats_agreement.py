"""Where other libraries compute the same, kvx's numbers are theirs: textbook cases."""

import numpy as np
import pytest
import scipy.stats as ss
from statsmodels.api import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import ttost_paired

from kvx.stats.cluster_intervals import korn_graubard, t_interval
from kvx.stats.clustered import (
    mean,
    paired_difference,
)
from kvx.stats.intervals import clopper_pearson, wilson
from kvx.stats.multiplicity import benjamini_hochberg, holm
from kvx.stats.paired import mcnemar_exact, newcombe_interval
from kvx.stats.risk_control import binomial_p
from kvx.stats.sign_flips import sign_flip_p

# 22 texts of 1 to 6 questions, some of them easier than others
RNG = np.random.default_rng(11)
SIZES = RNG.integers(1, 7, 22)
TEXTS = np.repeat(np.arange(22), SIZES)
HERE = np.clip(RNG.beta(2, 2, 22)[TEXTS] + RNG.normal(0, 0.1, len(TEXTS)), 0, 1)
FULL = np.clip(HERE + RNG.normal(0.05, 0.1, len(TEXTS)), 0, 1)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (15, 148), (147, 148), (263, 263)])
def test_intervals_of_a_proportion(k: int, n: int) -> None:
    for interval, method in ((clopper_pearson, "beta"), (wilson, "wilson")):
        assert tuple(interval(k, n, 0.95)) == pytest.approx(
            proportion_confint(k, n, alpha=0.05, method=method), abs=1e-9
        )
    name = {"exact": clopper_pearson, "wilson": wilson}
    for method, interval in name.items():
        theirs = ss.binomtest(k, n).proportion_ci(0.95, method=method)
        assert tuple(interval(k, n, 0.95)) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


@pytest.mark.parametrize(("lost", "won"), [(0, 5), (10, 2), (101, 59), (7, 7)])
def test_mcnemar(lost: int, won: int) -> None:
    theirs = mcnemar([[40, lost], [won, 60]], exact=True)
    assert mcnemar_exact(lost, won) == pytest.approx(theirs.pvalue)
    assert mcnemar_exact(lost, won) == pytest.approx(ss.binomtest(lost, lost + won).pvalue)
    sums = [-1.0] * lost + [1.0] * won
    assert sign_flip_p(sums) == pytest.approx(min(1.0, theirs.pvalue))


def test_newcombes_published_interval() -> None:
    """Newcombe (1998), table II, method 10: 36 + 12 + 2 + 0 pairs give [0.0569, 0.3404]."""
    low, high = newcombe_interval(36, 2, 12, 0, 0.95)
    assert (low, high) == pytest.approx((0.0569, 0.3404), abs=6e-5)


def test_corrections_for_many_tests() -> None:
    p = RNG.random(40) ** 3
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1])
    assert benjamini_hochberg(p) == pytest.approx(ss.false_discovery_control(p))


def test_paired_differences_have_the_cluster_robust_error_of_regression() -> None:
    """The t interval over clusters is that of a regression on a constant with clustered errors."""
    apart, n = HERE - FULL, len(TEXTS)
    fitted = OLS(apart, np.ones(n)).fit(cov_type="cluster", cov_kwds={"groups": TEXTS}, use_t=True)
    reach = ss.t.ppf(0.975, 21) * fitted.bse[0]
    sums, counts = np.bincount(TEXTS, apart), np.bincount(TEXTS).astype(float)
    (low, high), method = t_interval(apart, sums, counts, 0.95, None)
    assert method == "cluster_t"
    assert (low + high) / 2 == pytest.approx(fitted.params[0])
    assert (high - low) / 2 == pytest.approx(reach)
    used = paired_difference(HERE, FULL, TEXTS.tolist(), 0.95)
    assert used.difference == pytest.approx(fitted.params[0])
    # two clusters are added where the differences are one-sided, as they are here
    assert high - low < used.interval.high - used.interval.low < 2 * (high - low)


def test_of_clusters_of_one_the_interval_is_students() -> None:
    apart = HERE[:30] - FULL[:30]
    (low, high), _ = t_interval(apart, apart, np.ones(30), 0.95, None)
    theirs = ss.ttest_1samp(apart, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((theirs.low, theirs.high))


def test_flipping_the_signs_of_clusters_is_scipys_permutation_test() -> None:
    sums = np.bincount(TEXTS, HERE - FULL)
    for n in (8, 12):  # all signs
        theirs = ss.permutation_test(
            (sums[:n],), np.sum, permutation_type="samples", n_resamples=5000
        )
        assert sign_flip_p(sums[:n]) == pytest.approx(theirs.pvalue, abs=1e-9)
    theirs = ss.permutation_test(
        (sums,), np.sum, permutation_type="samples", n_resamples=20_000, rng=1
    )
    assert sign_flip_p(sums) == pytest.approx(theirs.pvalue, abs=0.01)


def test_a_mean_of_independent_rights_and_wrongs() -> None:
    values = (RNG.random(80) < 0.9).astype(float)
    found = mean(values, list(range(80)), 0.95)
    theirs = ss.binomtest(int(values.sum()), 80).proportion_ci(0.95)
    assert tuple(found.interval) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    # with the error of independent ones, Korn and Graubard's is the exact interval but for t
    share = float(values.mean())
    near = korn_graubard(share, np.sqrt(share * (1 - share) / 80), 10**6, 0.95)
    assert tuple(near) == pytest.approx((theirs.low, theirs.high), abs=1e-4)


def test_certificates_of_losses_of_0_and_1() -> None:
    for k, n, alpha in ((0, 59, 0.05), (7, 200, 0.05), (20, 200, 0.15)):
        theirs = ss.binomtest(k, n, alpha, alternative="less").pvalue
        assert binomial_p(k, n, alpha) == pytest.approx(theirs)


def test_what_is_equivalent_by_two_one_sided_tests_is_within_the_interval() -> None:
    """Schuirmann (1987): TOST at 5% holds just if the 90% interval lies within the margin."""
    here, full = HERE[:40], np.clip(HERE[:40] + RNG.normal(0, 0.03, 40), 0, 1)
    (low, high), _ = t_interval(here - full, here - full, np.ones(40), 0.90, None)
    for margin in (0.002, 0.005, 0.01, 0.02, 0.05):
        p, _, _ = ttost_paired(here, full, -margin, margin)
        assert (p <= 0.05) == (-margin <= low and high <= margin)
