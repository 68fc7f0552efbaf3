"""CPU seconds of kvx and of a plain loop of pandas and numpy for the tables with a row per cell.

The loop is what one writes first: for every point, bin and metric the rows are selected, joined
with the full cache's by example, and means, paired differences, rates and ratios get percentile
intervals from `--n-boot` resamples of the prompts. kvx makes `bin_stats`, `comparisons`,
`catastrophe_stats` and `goodput` of the same points, with more columns and by other methods; the
means and differences of both are compared. Points cost the same, so a few tell.

    python scripts/bench_analyze.py --seeds 1 --write DIR && python -m kvx.score …
    python scripts/pandas_loop.py DIR/outputs --points 10
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.bin_stats import bin_stats, compared
from kvx.analyze.catastrophe_stats import rates
from kvx.analyze.frames import Experiment, load_experiment
from kvx.analyze.goodput_stats import credits
from kvx.config.analyze import AnalyzeConfig
from kvx.scoring.catastrophes import KINDS, pair
from kvx.store.catalog import PointRecord

Floats = NDArray[np.float64]
BESIDE = ["example_id", "failed", "output_tokens", "kv_bytes_physical"]


def interval(draws: Floats) -> tuple[float, float]:
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)


def resampled(values: Floats, n_boot: int, rng: np.random.Generator) -> tuple[float, float]:
    drawn = rng.integers(len(values), size=(n_boot, len(values)))
    return interval(values[drawn].mean(axis=1))


def resampled_ratio(
    a: Floats, b: Floats, n_boot: int, rng: np.random.Generator
) -> tuple[float, float]:
    drawn = rng.integers(len(a), size=(n_boot, len(a)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return interval(a[drawn].sum(axis=1) / b[drawn].sum(axis=1))


def frame(point: PointRecord, name: str) -> pd.DataFrame:
    return pd.read_parquet(point.dir / f"{name}.parquet")


def judged(point: PointRecord) -> pd.DataFrame:
    """Scores with what was asked and whether it failed; a missing answer scores 0."""
    requests, failures = frame(point, "requests"), frame(point, "failures")
    requests["failed"] = requests["request_id"].isin(failures["request_id"])
    scores = frame(point, "scores").merge(requests[BESIDE], on="example_id")
    return scores.assign(score=scores["score"].fillna(0.0))


def loop(points: list[PointRecord], experiment: Experiment, n_boot: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = []
    for point in points:
        full = experiment.full_cache(point)
        own = judged(point)
        both = None
        if full is not None and full.id != point.id:
            both = own.merge(judged(full), on=["example_id", "metric"], suffixes=("", "_full"))
        seen = frame(point, "catastrophes")
        twin = seen if full is None else frame(full, "catastrophes")
        flags = pair(seen, twin).astype(dict.fromkeys(KINDS, float))
        for index in [*sorted(own["bin"].unique()), -1]:
            for metric in own["metric"].unique():
                rows.append({"point_id": point.id, "bin": int(index), "metric": metric})
                cell = own[(own["metric"] == metric) & ((own["bin"] == index) | (index == -1))]
                scores = cell["score"].to_numpy(float)
                rows[-1] |= {"mean": scores.mean(), "sd": scores.std(ddof=1)}
                rows[-1]["ci"] = resampled(scores, n_boot, rng)
                rows[-1]["failure_ci"] = resampled(cell["failed"].to_numpy(float), n_boot, rng)
                kv, tokens = (
                    cell[name].fillna(0).to_numpy(float)
                    for name in ("kv_bytes_physical", "output_tokens")
                )
                rows[-1]["per_gib_ci"] = resampled_ratio(scores, kv / 2**30, n_boot, rng)
                rows[-1]["tokens_ci"] = resampled_ratio(tokens, scores, n_boot, rng)
                if both is None:
                    continue
                some = both[(both["metric"] == metric) & ((both["bin"] == index) | (index == -1))]
                apart = (some["score"] - some["score_full"]).to_numpy(float)
                rows[-1]["difference"] = apart.mean()
                rows[-1]["difference_ci"] = resampled(apart, n_boot, rng)
            for kind in KINDS:
                some = flags[(flags["bin"] == index) | (index == -1)]
                here, there = (some[n].to_numpy(float) for n in (kind, f"twin_{kind}"))
                known = ~np.isnan(here)
                if known.any():
                    resampled(here[known], n_boot, rng)
                known &= ~np.isnan(there)
                if known.any():
                    resampled(here[known] - there[known], n_boot, rng)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="paths.output of a scored experiment")
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--n-boot", type=int, default=10_000)
    options = parser.parse_args()
    folder = next((options.output / "runs").iterdir())
    experiment, config = load_experiment(folder, options.output), AnalyzeConfig()
    points = experiment.points[:: max(1, len(experiment.points) // options.points)]
    points = points[: options.points]
    del experiment.__dict__["_tables"]  # what loading read; both sides read for themselves
    begun = time.process_time()
    stats = bin_stats(experiment, config, points)
    differences = compared(experiment, config, points)
    rates(experiment, config, points)
    credits(experiment, config, points)
    ours = time.process_time() - begun
    begun = time.process_time()
    plain = loop(points, experiment, options.n_boot)
    theirs = time.process_time() - begun
    means = {(r["point_id"], r["bin"], r["metric"]): r["mean"] for r in stats}
    off = max(abs(means[r["point_id"], r["bin"], r["metric"]] - r["mean"]) for r in plain)
    print(f"{len(points)} points, {len(stats) + len(differences)} rows of scores")
    print(f"kvx {ours:.2f} CPU s, the loop {theirs:.2f} CPU s: {theirs / ours:.0f} times")
    print(f"means differ by at most {off:.1g}")


if __name__ == "__main__":
    main()
