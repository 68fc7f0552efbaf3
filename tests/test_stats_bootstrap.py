"""Cluster bootstrap: equal to the slow definition, blind to names and order, right in coverage."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvx.stats import bootstrap
from kvx.stats.bootstrap import (
    ClusterBootstrap,
    bootstrap_means,
    cluster_codes,
    cluster_sums,
    percentile_interval,
    percentile_intervals,
)

NAN = math.nan
rows = st.lists(
    st.tuples(st.one_of(st.just(NAN), st.floats(0, 1)), st.integers(0, 6)), min_size=1, max_size=40
)


def columns(pairs):
    return [value for value, _ in pairs], [cluster for _, cluster in pairs]


def estimate(values, clusters, n_boot=300, confidence=0.95, seed=7):
    return bootstrap_means([(values, clusters)], n_boot, confidence, seed)[0]


def slow_means(values, codes, weights):
    """The definition: write every resample out, row by row."""
    means = []
    for weight in weights:
        drawn = []
        for value, code in zip(values, codes, strict=True):
            if not math.isnan(value):
                drawn += [value] * int(weight[code])
        means.append(sum(drawn) / len(drawn) if drawn else NAN)
    return means


def test_sums_and_counts_leave_unscored_rows_out():
    values = [[1.0, 2.0, NAN, 4.0], [NAN, NAN, 5.0, 0.5]]
    sums, counts = cluster_sums(values, ["a", "b", "a", "b"])
    assert sums.tolist() == [[1.0, 6.0], [5.0, 0.5]]
    assert counts.tolist() == [[1, 2], [1, 1]]
    sums, counts = cluster_sums([1.0, NAN], ["a", "b"])
    assert sums.tolist() == [1.0, 0.0]
    assert counts.tolist() == [1, 0]


def test_the_order_of_rows_does_not_change_the_last_bit_of_a_sum():
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    one, other = cluster_sums([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]], ["a", "a", "a"])[0]
    assert one == other


def test_equal_names_are_one_cluster_and_a_nan_name_is_refused():
    codes, n_clusters = cluster_codes([("doc", 1), "x", ("doc", 1), None])
    assert codes.tolist() == [0, 1, 0, 2]
    assert n_clusters == 3
    with pytest.raises(ValueError, match="row 1 is nan"):
        cluster_codes(["x", NAN])


def test_every_resample_holds_as_many_clusters_as_there_are_and_the_seed_decides_which():
    weights = ClusterBootstrap(12, 50, seed=3).weights
    assert (weights.sum(axis=1) == 12).all()
    assert (weights == ClusterBootstrap(12, 50, seed=3).weights).all()
    assert (weights != ClusterBootstrap(12, 50, seed=4).weights).any()


@pytest.mark.parametrize("chunk_bytes", [bootstrap.CHUNK_BYTES, 2_000])
def test_means_equal_a_loop_over_the_rows_of_every_resample(chunk_bytes, monkeypatch):
    monkeypatch.setattr(bootstrap, "CHUNK_BYTES", chunk_bytes)
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 9, 60).tolist()
    values = rng.random((4, 60))
    values[1, rng.random(60) < 0.4] = NAN
    values[2, np.array(clusters) > 1] = NAN  # few clusters: some resamples hold none of them
    codes, n_clusters = cluster_codes(clusters)
    boot = ClusterBootstrap(n_clusters, 200, seed=1)
    draws = boot.means(*cluster_sums(values, clusters))
    assert np.isnan(draws[2]).any()
    for cell, cell_draws in zip(values, draws, strict=True):
        np.testing.assert_allclose(cell_draws, slow_means(cell, codes, boot.weights), rtol=1e-12)


def test_one_row_per_cluster_is_the_plain_bootstrap():
    values = np.sort(np.random.default_rng(2).random(25))
    plain = [np.repeat(values, w.astype(int)).mean() for w in ClusterBootstrap(25, 500, 7).weights]
    got = estimate(values, [f"prompt-{i}" for i in range(25)], n_boot=500)
    assert tuple(got.interval) == pytest.approx(np.quantile(plain, [0.025, 0.975]), rel=1e-12)


@given(pairs=rows, seed=st.integers(0, 5), data=st.data())
@settings(deadline=None, max_examples=60)
def test_the_order_of_rows_and_the_names_of_clusters_change_nothing(pairs, seed, data):
    values, clusters = columns(pairs)
    shuffled, renamed = columns(data.draw(st.permutations(pairs)))
    renamed = [f"document {9 - c}" for c in renamed]
    before, after = estimate(values, clusters, seed=seed), estimate(shuffled, renamed, seed=seed)
    assert repr(before) == repr(after)  # repr, because nan differs from nan


@given(pairs=rows)
@settings(deadline=None, max_examples=60)
def test_an_interval_contains_its_mean_and_needs_two_clusters(pairs):
    values, clusters = columns(pairs)
    got = estimate(values, clusters)
    scored = [(v, c) for v, c in pairs if not math.isnan(v)]
    assert got.n == len(scored)
    assert got.n_clusters == len({c for _, c in scored})
    if got.n_clusters < 2:
        assert all(math.isnan(end) for end in got.interval)
    else:
        assert got.interval.low - 1e-9 <= got.mean <= got.interval.high + 1e-9
    if got.n:
        assert got.mean == pytest.approx(np.mean([v for v, _ in scored]))


@given(value=st.floats(-10, 10), clusters=st.lists(st.integers(0, 5), min_size=2))
@settings(deadline=None, max_examples=40)
def test_constant_scores_give_an_interval_of_no_width(value, clusters):
    got = estimate([value] * (len(clusters) + 1), [*clusters, 9])
    assert tuple(got.interval) == pytest.approx((value, value), abs=1e-9)
    assert got.sd == pytest.approx(0, abs=1e-9)


def test_mean_and_sd_of_few_values():
    # 2, 4, 4, 4, 5, 5, 7, 9: sum of squares about the mean of 5 is 32
    got = estimate([2, 4, 4, 4, 5, 5, 7, 9, NAN], list("abcdefghi"))
    assert (got.n, got.n_clusters, got.mean) == (8, 8, 5.0)
    assert got.sd == pytest.approx(math.sqrt(32 / 7))
    one = estimate([0.5], ["a"])
    assert (one.n, one.mean) == (1, 0.5)
    assert math.isnan(one.sd)
    none = estimate([NAN, NAN], ["a", "b"])
    assert (none.n, none.n_clusters) == (0, 0)
    assert math.isnan(none.mean)
    assert estimate([], []).n == 0


def test_a_cell_with_one_cluster_is_unknown_among_cells_with_many():
    sums, counts = [[1.0, 2.0, 3.0], [1.0, 0.0, 0.0]], [[1, 2, 3], [4, 0, 0]]
    draws = ClusterBootstrap(3, 40, seed=0).means(sums, counts)
    assert not np.isnan(draws[0]).any()
    assert np.isnan(draws[1]).all()
    assert np.isnan(ClusterBootstrap(1, 5, seed=0).means([[1.0]], [[2]])).all()
    assert ClusterBootstrap(0, 5, seed=0).means(np.empty((2, 0)), np.empty((2, 0))).shape == (2, 5)
    assert ClusterBootstrap(3, 5, seed=0).means(np.empty((0, 3)), np.empty((0, 3))).shape == (0, 5)


def test_percentiles_ignore_unknown_draws():
    draws = np.arange(101.0)
    assert tuple(percentile_interval(draws, 0.9)) == pytest.approx((5, 95))
    assert tuple(percentile_interval([*draws, NAN, NAN], 0.9)) == pytest.approx((5, 95))
    known, unknown = percentile_intervals([[1.0, 3.0, NAN], [NAN, NAN, NAN]], 0.5)
    assert tuple(known) == pytest.approx((1.5, 2.5))
    assert all(math.isnan(end) for end in unknown)


def test_with_clustered_rows_only_the_cluster_bootstrap_covers_the_truth():
    n_experiments, n_clusters, per_cluster = 600, 40, 5
    rng = np.random.default_rng(11)
    effect = np.repeat(rng.normal(size=(n_experiments, n_clusters)), per_cluster, axis=1)
    values = effect + rng.normal(scale=0.3, size=effect.shape)  # the true mean is 0

    def coverage(clusters):
        sums, counts = cluster_sums(values, clusters)
        draws = ClusterBootstrap(sums.shape[1], 400, seed=5).means(sums, counts)
        return np.mean([low <= 0 <= high for low, high in percentile_intervals(draws, 0.95)])

    assert 0.91 <= coverage(np.repeat(np.arange(n_clusters), per_cluster)) <= 0.98
    assert coverage(range(n_clusters * per_cluster)) < 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [1.0]}, "need"),
        ({"values": [1.0, math.inf]}, "finite"),
        ({"n_boot": 0}, "n_boot=0"),
        ({"confidence": 95}, "confidence=95"),
    ],
)
def test_a_wrong_request_is_refused_in_words(change, message):
    request = {"values": [0.0, 1.0], "clusters": ["a", "b"]} | change
    with pytest.raises(ValueError, match=message):
        estimate(**request)


def test_sums_of_other_clusters_than_the_weights_are_refused():
    with pytest.raises(ValueError, match=r"must be \[cells, 3\]"):
        ClusterBootstrap(3, 10, seed=0).means([[1.0, 2.0]], [[1, 1]])


@given(st.lists(rows, max_size=8))
@settings(deadline=None, max_examples=50)
def test_many_cells_are_each_of_them_alone(cells):
    """Cells of one size share a product; those with equal contents, a resampling."""
    together = bootstrap_means([columns(cell) for cell in [*cells, *cells[:1]]], 200, 0.95, 3)
    for cell, found in zip([*cells, *cells[:1]], together, strict=True):
        (alone,) = bootstrap_means([columns(cell)], 200, 0.95, 3)
        assert tuple(found.interval) == pytest.approx(tuple(alone.interval), abs=1e-12, nan_ok=True)
        assert repr(replace(found, interval=None)) == repr(replace(alone, interval=None))


def test_cells_are_resampled_in_parts_that_fit_the_memory(monkeypatch):
    rng = np.random.default_rng(0)
    cells = [(rng.random(12), list(range(12))) for _ in range(7)]
    whole = bootstrap_means(cells, 500, 0.95, 0)
    monkeypatch.setattr(bootstrap, "DRAWS_BYTES", 2 * 8 * 500)  # two cells at a time
    parts = bootstrap_means(cells, 500, 0.95, 0)
    for one, other in zip(whole, parts, strict=True):
        assert tuple(one.interval) == pytest.approx(tuple(other.interval), abs=1e-12)
