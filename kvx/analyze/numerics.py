"""numerics: how far two full-cache runs lie apart that differ only in how sums are rounded."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy.special import ndtri

from kvx.analyze.bin_stats import Row, null
from kvx.analyze.frames import Experiment
from kvx.analyze.naming import flat
from kvx.analyze.panels import Panel
from kvx.config.analyze import AnalyzeConfig
from kvx.points import OWN
from kvx.stats.clustered import paired_difference
from kvx.stats.samples import noise_reach
from kvx.store.catalog import PointRecord

# settings that change the order or the precision of sums, and nothing that is computed
ROUNDING = (
    "model.dtype", "model.device", "model.attn_implementation", "engine.share", "engine.max_rows",
    "engine.max_cache_gib",
)  # fmt: skip


def numerics(experiment: Experiment, panels: Iterable[Panel], config: AnalyzeConfig) -> list[Row]:
    """One row per full-cache point beside the first of its seed, and bin; -1 is all bins together.

    Both are of one variant (presses at budget 1, in other batches), or of variants whose
    configurations differ only in `ROUNDING`, over the examples that both answered. `floor` is how
    far rounding alone moves the mean of so many prompts, see `noise_reach`.
    """
    found: dict[tuple[str, int], list[tuple[Panel, PointRecord]]] = defaultdict(list)
    for panel in panels:
        for point in panel.points:
            if point.is_full_cache and point.info["controller"] == "none":
                found[apart_from_rounding(point), point.info["seed"]].append((panel, point))
    rows = []
    for alike in found.values():
        one, a = min(alike, key=lambda of: experiment.press_labels[of[1].id] != "none")
        for other, b in alike:
            if b is a or one.metric != other.metric:
                continue
            if np.array_equal(one.pairs, other.pairs):
                rows += _rows(experiment, (one, a), (other, b), config)
    return rows


def _settings(point: PointRecord) -> dict[str, str]:
    own = {k: v for k, v in point.info["config"].items() if k not in OWN}
    return flat(own | {"manifest": point.info["manifest"]["sha256"]})


def apart_from_rounding(point: PointRecord) -> str:
    """What two points must share: everything but what rounds."""
    fields = {k: v for k, v in _settings(point).items() if k not in ROUNDING}
    return repr((point.info["model_hash"], sorted(fields.items())))


def _differs_in(experiment: Experiment, a: PointRecord, b: PointRecord) -> str:
    one, other = _settings(a), _settings(b)
    names = [k for k in sorted(one | other) if k in ROUNDING and one.get(k) != other.get(k)]
    told = [f"{k}: {one.get(k)} | {other.get(k)}" for k in names]
    presses = [experiment.press_labels[p.id] for p in (a, b)]
    return "; ".join(told) or f"press at budget 1: {' | '.join(presses)}"


def _rows(
    experiment: Experiment,
    first: tuple[Panel, PointRecord],
    second: tuple[Panel, PointRecord],
    config: AnalyzeConfig,
) -> list[Row]:
    (one, a), (other, b) = first, second
    z = float(ndtri((1 + config.confidence) / 2))
    about: dict[str, Any] = {
        "point_a": a.id, "point_b": b.id, "variant_a": a.info["variant_id"],
        "variant_b": b.info["variant_id"], "seed": a.info["seed"], "metric": one.metric,
        "differs_in": _differs_in(experiment, a, b),
    }  # fmt: skip
    rows = []
    answered = ~(one.missing[one.row(a.id)] | other.missing[other.row(b.id)])
    for index, whole in one.cells():
        cell = whole & answered
        if not cell.any():
            continue
        ours = one.goodness[one.row(a.id)][cell].astype(float)
        theirs = other.goodness[other.row(b.id)][cell].astype(float)
        clusters = one.clusters[cell]
        d = paired_difference(ours, theirs, clusters, config.confidence)
        rows.append(
            {
                **about, "bin": index, "n_pairs": d.n_pairs, "n_clusters": d.n_clusters,
                "n_differ": int((ours != theirs).sum()), "difference": null(d.difference),
                "ci_low": null(d.interval.low), "ci_high": null(d.interval.high),
                "p": null(d.p), "floor": null(noise_reach(ours - theirs, clusters, z)),
            }
        )  # fmt: skip
    return rows
