"""Resampling in pieces: memory does not grow with events x resamples, and no bit changes."""

import tracemalloc

import numpy as np
import pytest

from kvx.learning import ranking
from kvx.learning.live_stats import KINDS, Pairs, Use, cost_figures, effect_figures
from kvx.learning.ranking import Resampler
from kvx.stats import bootstrap
from kvx.stats.bootstrap import ClusterBootstrap, bootstrap_means

MIB = 2**20


def peak_mib(do):
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


def used(n, n_events, clusters, rng):
    """What `n` responses used, and `n_events` pauses in them."""
    column = {
        name: rng.random(n)
        for name in ("intervened", "mean_budget", "nominal_budget", "entries", "decoded", "output",
                     "dropped", "recomputed", "host_bytes")
    }  # fmt: skip
    of = rng.integers(0, clusters, n)
    pauses = rng.lognormal(size=n_events)
    return Use(
        clusters=of, pause_ms=pauses, pause_clusters=rng.integers(0, clusters, n_events), **column
    )


def compared(n, clusters, rng):
    def flags():
        return {kind: rng.integers(0, 2, n).astype(float) for kind in KINDS}

    return Pairs(
        clusters=rng.integers(0, clusters, n), intervened=rng.random(n), here=flags(),
        there=flags(), derailed=flags()["any"], score_here=rng.random(n), score_there=rng.random(n),
    )  # fmt: skip


def test_a_quantile_of_thousands_of_events_takes_little_memory():
    rng = np.random.default_rng(0)
    events, of = rng.lognormal(size=3000), rng.integers(0, 300, 3000)
    by = Resampler(300, 10_000, 0.95, 0)
    assert peak_mib(lambda: by.quantile(events, of, 0.99)) < 64


@pytest.mark.parametrize("n_events", [3_000, 30_000])
def test_tables_of_live_controllers_do_not_grow_with_events_times_resamples(n_events):
    rng = np.random.default_rng(1)
    use, pairs = used(2000, n_events, 500, rng), compared(2000, 500, rng)

    def figures():
        by = Resampler(500, 5_000, 0.95, 0)
        cost_figures(use, by)
        effect_figures(pairs, by)

    assert peak_mib(figures) < 64


def test_a_bootstrap_holds_a_byte_per_cluster_and_resample():
    assert ClusterBootstrap(3000, 5_000, 0).weights.nbytes <= 3000 * 5_000
    by = Resampler(3000, 5_000, 0.95, 0)
    assert peak_mib(lambda: by.ratio(np.ones(3000), np.ones(3000), np.arange(3000))) < 64


def test_pieces_give_what_the_whole_gives_to_the_last_bit(monkeypatch):
    rng = np.random.default_rng(2)
    events, top, bottom = rng.lognormal(size=900), rng.random(900), rng.random(900)
    of = rng.integers(0, 70, 900)

    def found():
        by = Resampler(70, 1_000, 0.95, 3)
        return [
            by.quantile(events, of, 0.5), by.quantile(events, of, 0.99),
            by.ratio(top, bottom, of), by.ratio_difference((top, bottom), (bottom, top), of),
            bootstrap_means([(top, of.tolist())], 1_000, 0.95, 3),
        ]  # fmt: skip

    by = Resampler(70, 1_000, 0.95, 3)
    whole = found()
    weights = by.weights.astype(float)
    order = np.argsort(events, kind="stable")
    up_to = np.cumsum(weights[:, of[order]], axis=1)
    for q, interval in ((0.5, whole[0].interval), (0.99, whole[1].interval)):
        draws = events[order][(up_to >= q * up_to[:, -1:]).argmax(axis=1)]
        assert tuple(interval) == tuple(np.quantile(draws, [0.025, 0.975]))
    monkeypatch.setattr(ranking, "WORKING_BYTES", 8 * 70 * 200)
    monkeypatch.setattr(bootstrap, "DRAWING_BYTES", 8 * 70 * 200)
    bootstrap._drawn.clear()
    assert found() == whole
