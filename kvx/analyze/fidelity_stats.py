"""fidelity_stats: how far compressed caches move next-token distributions along one same answer.

Every point was fed the full cache's own greedy answer (`measure=fidelity`), so no example needs a
reference answer, and points are compared at the same text. A token is a row, a prompt with all of
its tokens lies in one cluster.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kvx.analyze.bin_stats import Row, kept_share, null
from kvx.analyze.columns import ALL_BINS, Columns
from kvx.analyze.facts import another_number
from kvx.analyze.frames import Experiment
from kvx.analyze.point_tables import PointTables
from kvx.config.analyze import AnalyzeConfig
from kvx.stats import clustered
from kvx.stats.intervals import Interval
from kvx.store import fidelity_schemas
from kvx.store.catalog import PointRecord, columns_of, compared_points
from kvx.store.layout import FIDELITY

# the first and last token of each range of positions, counted from 1; None: to the end
POSITIONS: tuple[tuple[int, int | None], ...] = ((1, 1), (2, 4), (5, 16), (17, 64), (65, None))
PER_REQUEST = (
    "bin", "compressed_tokens", "degenerate", "adapted", "error_type", "kv_entries_nominal",
    "kv_entries_effective", "kv_bytes_nominal", "kv_bytes_effective", "kv_bytes_physical",
    "kv_bytes_full", "kv_compressed_share",
)  # fmt: skip
PER_TOKEN = ("kl_nats", "same_top1", "logprob", "full_logprob")


@dataclass(frozen=True)
class Tokens:
    """Values per token: `request` is an index, `position` counts from 1."""

    request: NDArray[np.int64]
    position: NDArray[np.int64]
    values: dict[str, NDArray[np.float64]]

    def at(self, rows: NDArray[np.bool_]) -> "Tokens":
        values = {name: column[rows] for name, column in self.values.items()}
        return Tokens(self.request[rows], self.position[rows], values)


class ComparedTables(PointTables):
    """As `PointTables`, with the requests that were compared with the full cache."""

    def _requests(self, point: PointRecord) -> Columns:
        found = columns_of(point, FIDELITY, ("example_id", *PER_REQUEST))
        return self._located(point, found, PER_REQUEST, fidelity_schemas.FIDELITY)


class ComparedExperiment(Experiment):
    """The points of an experiment that were compared with the full cache."""

    @cached_property
    def _tables(self) -> PointTables:
        return ComparedTables(self.manifests)


def load_compared(folder: Path, output: Path) -> ComparedExperiment:
    """The experiment's points that have fidelity; none is not an error."""
    points = compared_points(folder)
    folders = {p.info["manifest"]["key"]: p.manifest_dir(output) for p in points}
    manifests = {k: json.loads((f / "manifest.json").read_text()) for k, f in folders.items()}
    experiment = ComparedExperiment(folder, points, manifests)
    for point in points:
        requests = experiment.of("requests", point.id)
        if another_number(requests).any():
            experiment.facts.keep_another_number.add(point.id)
    return experiment


def fidelity_stats(experiment: ComparedExperiment, config: AnalyzeConfig) -> list[Row]:
    """One row per point and bin, and of all bins one per range of positions."""
    rows: list[Row] = []
    for point in experiment.points:
        requests, tokens = experiment.of("requests", point.id), tokens_of(point)
        series, bins = experiment.series_columns(point), experiment.manifest(point)["bins"]
        for index, asked in _by_bin(requests):
            edges = bins if index == ALL_BINS else [bins[index]]
            about = {
                **series, "bin": index, "bin_low_tokens": edges[0]["low_tokens"],
                "bin_high_tokens": edges[-1]["high_tokens"],
                "n_failed": int((requests["error_type"][asked] != None).sum()),  # noqa: E711
                "n_degenerate": int(requests["degenerate"][asked].sum()),
                "n_adapted": int((requests["adapted"][asked] != None).sum()),  # noqa: E711
                **_kept(requests, asked),
            }  # fmt: skip
            inside = tokens.at(asked[tokens.request])
            whole: tuple[int, int | None] = (1, None)
            for low, high in (whole, *POSITIONS) if index == ALL_BINS else (whole,):
                upto = math.inf if high is None else high
                cell = inside.at((inside.position >= low) & (inside.position <= upto))
                if len(cell.request) or (low, high) == whole:
                    place = {"position_low": low, "position_high": high}
                    is_whole = (low, high) == whole
                    rows.append(about | place | _cell(cell, requests, is_whole, config))
    return rows


def tokens_of(point: PointRecord) -> Tokens:
    """Every token of a point's comparisons, request by request."""
    table = columns_of(point, FIDELITY, PER_TOKEN)
    lists = {name: table[name].combine_chunks() for name in PER_TOKEN}
    lengths = np.asarray(lists["kl_nats"].value_lengths().fill_null(0).to_numpy(False), np.int64)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    values = {
        name: np.asarray(column.flatten().cast(pa.float64()).to_numpy(False))
        if name != "same_top1"
        else np.asarray(column.flatten().cast(pa.int8()).to_numpy(False), np.float64)
        for name, column in lists.items()
    }
    n = int(lengths.sum())
    return Tokens(np.repeat(np.arange(len(lengths)), lengths), np.arange(n) - starts + 1, values)


def _by_bin(requests: Columns) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    bins = requests["bin"]
    for index in np.unique(bins):
        yield int(index), bins == index
    yield ALL_BINS, np.ones(len(bins), dtype=bool)


def _kept(requests: Columns, asked: NDArray[np.bool_]) -> Row:
    effective, held, full = (
        requests[f"kv_bytes_{name}"][asked] for name in ("effective", "physical", "full")
    )
    share = kept_share(effective / full, requests["kv_compressed_share"][asked])
    known = ~np.isnan(share)
    if not known.any():
        return {"budget_measured": None, "kv_bytes_mean": None, "kv_bytes_full_mean": None}
    return {
        "budget_measured": float(share[known].mean()), "kv_bytes_mean": float(held[known].mean()),
        "kv_bytes_full_mean": float(full[known].mean()),
    }  # fmt: skip


def _cell(tokens: Tokens, requests: Columns, whole: bool, config: AnalyzeConfig) -> Row:
    """Means over tokens, with intervals over clusters.

    The ratio of perplexities is exp of the mean of the answer's log-prob under the full cache less
    that under this one. `same_answer` is over prompts: all tokens are the likeliest here too, so
    greedy decoding gives the full cache's answer.
    """
    clusters = requests["cluster"][tokens.request]
    kl, same = tokens.values["kl_nats"], tokens.values["same_top1"]
    lost = tokens.values["full_logprob"] - tokens.values["logprob"]
    row: Row = {
        "n_tokens": len(kl), "n_prompts": len(np.unique(tokens.request)),
        "n_clusters": len(np.unique(clusters)),
    }  # fmt: skip
    if not len(kl):
        return row
    confidence = config.confidence
    apart = clustered.mean(kl, clusters, confidence, bounds=None)
    ratio = clustered.mean(lost, clusters, confidence, bounds=None)
    low = float(np.maximum(apart.interval.low, 0.0))  # of nan, nan
    row |= _columns("kl_nats", apart.mean, Interval(low, apart.interval.high))
    agreed = clustered.mean(same, clusters, confidence, binary=True)
    row |= _columns("agreement", agreed.mean, agreed.interval)
    middle, *ends = np.exp([ratio.mean, ratio.interval.low, ratio.interval.high]).tolist()
    row |= _columns("perplexity_ratio", middle, Interval(*ends))
    if whole:
        prompts, index = np.unique(tokens.request, return_inverse=True)
        kept = np.ones(len(prompts))
        np.minimum.at(kept, index, same)
        found = clustered.mean(kept, requests["cluster"][prompts], confidence, binary=True)
        row |= _columns("same_answer", found.mean, found.interval)
    return row


def _columns(name: str, value: float, interval: Interval) -> Row:
    low, high = null(interval.low), null(interval.high)
    return {name: null(value), f"{name}_ci_low": low, f"{name}_ci_high": high}
