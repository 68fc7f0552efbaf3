"""Length bins and the seeded choice of examples inside them: pure functions on lengths and ids."""

import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import pairwise

from kvx.config.dataset import (
    BinningConfig,
    BinStrategy,
    SampleStrategy,
    SamplingConfig,
    ascending,
)
from kvx.errors import UserError


def check(binning: BinningConfig, sampling: SamplingConfig) -> None:
    """Raises `UserError` naming the field for settings that could select nothing.

    These rules relate two fields; `kvx.config.fields` checks the ranges of one.
    """
    fixed = binning.strategy is BinStrategy.edges
    if fixed:
        _edges(binning)
    focus = sampling.strategy is SampleStrategy.focus_transition
    pinned = sampling.strategy is SampleStrategy.pinned
    for name, is_used in (("n_per_bin", not pinned), ("focus_n_per_bin", focus)):
        if is_used and (n := getattr(sampling, name)) < 1:
            raise UserError(f"dataset.sampling.{name}={n}: must be at least 1")
    if focus:
        _focus(sampling, len(binning.edges or []) - 1 if fixed else binning.n_bins)
    if pinned and not sampling.pinned_ids:
        raise UserError("dataset.sampling.pinned_ids: empty; name at least one id")


def _edges(binning: BinningConfig) -> list[int]:
    edges = list(binning.edges or [])
    if wrong := ascending(edges):
        raise UserError(f"dataset.binning.edges{wrong}")
    return edges


def _focus(sampling: SamplingConfig, n_bins: int) -> None:
    outside = [b for b in sampling.focus_bins if not 0 <= b < n_bins]
    if outside or not sampling.focus_bins:
        raise UserError(
            f"dataset.sampling.focus_bins={sampling.focus_bins}: name bins between 0 and "
            f"{n_bins - 1}"
        )


def bin_edges(lengths: Sequence[int], binning: BinningConfig) -> list[int]:
    """`n_bins + 1` ascending edges in tokens; bin i is [edge i, edge i+1), the last one closed.

    Quantile edges give each bin about the same number of examples. Raises `UserError` if there are
    more bins than distinct lengths, or fixed edges are not ascending.
    """
    if binning.strategy is BinStrategy.edges:
        return _edges(binning)
    distinct = sorted(set(lengths))
    if len(distinct) < binning.n_bins:
        raise UserError(
            f"dataset.binning.n_bins={binning.n_bins}: only {len(distinct)} distinct context "
            "lengths in the data; use fewer bins"
        )
    edges = _quantile_edges(sorted(lengths), binning.n_bins)
    if any(a >= b for a, b in pairwise(edges)):  # many equal lengths: share out the distinct ones
        edges = _quantile_edges(distinct, binning.n_bins)
    return edges


def _quantile_edges(ordered: Sequence[int], n_bins: int) -> list[int]:
    edges = [ordered[round(i * len(ordered) / n_bins)] for i in range(n_bins)]
    return [*edges, max(ordered[-1], edges[-1] + 1)]


def bin_of(length: int, edges: Sequence[int]) -> int | None:
    """Index of the bin holding `length`, or None outside the edges."""
    if not edges[0] <= length <= edges[-1]:
        return None
    return min(bisect_right(edges, length) - 1, len(edges) - 2)


def choose(
    ids_by_bin: Sequence[Sequence[str]],
    sampling: SamplingConfig,
    clusters: Mapping[str, str] | None = None,
) -> list[list[str]]:
    """Chosen ids per bin, in the order of the data, for settings that `check` accepts.

    `uniform` takes n_per_bin each, `focus_transition` takes focus_n_per_bin in focus_bins, `pinned`
    takes exactly `pinned_ids`. A bin with fewer gives what it has. With `whole_clusters` these are
    numbers of clusters (by id in `clusters`), and all ids of a chosen one are taken.
    """
    if sampling.strategy is SampleStrategy.pinned:
        pinned = set(sampling.pinned_ids)
        have = {i for ids in ids_by_bin for i in ids}
        if missing := [i for i in sampling.pinned_ids if i not in have]:
            raise UserError(
                f"dataset.sampling.pinned_ids: {', '.join(missing[:3])} not in the data (or "
                "outside the bin edges)"
            )
        return [[i for i in ids if i in pinned] for ids in ids_by_bin]
    focused: list[int] = []
    if sampling.strategy is SampleStrategy.focus_transition:
        _focus(sampling, len(ids_by_bin))
        focused = sampling.focus_bins
    chosen = []
    for index, ids in enumerate(ids_by_bin):
        wanted_n = sampling.focus_n_per_bin if index in focused else sampling.n_per_bin
        rng = random.Random(f"{sampling.seed}-{index}")
        if sampling.whole_clusters and clusters is not None:
            names = list(dict.fromkeys(clusters[i] for i in ids))
            taken = set(rng.sample(names, min(wanted_n, len(names))))
            chosen.append([i for i in ids if clusters[i] in taken])
            continue
        order = {i: k for k, i in enumerate(ids)}
        chosen.append(sorted(rng.sample(list(ids), min(wanted_n, len(ids))), key=order.__getitem__))
    return chosen
