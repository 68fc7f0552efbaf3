"""Samples of one configuration, and the differences that rounding alone makes."""

from collections.abc import Collection, Iterator

import pandas as pd

from kvx.analyze.columns import ALL_BINS
from kvx.report.tables import markdown, number
from kvx.report.wording import DEGENERATE, interval, percent

SHOWN = 5


def samples_table(samples: pd.DataFrame, degenerate: Collection[str] = ()) -> str:
    """A row per configuration over all bins, a column per k; empty without several seeds.

    Marked are those with points among the `degenerate`.
    """
    overall = samples[samples["bin"] == ALL_BINS]
    if not len(overall):
        return ""
    ks = sorted(overall["k"].unique())
    rows = []
    for _, group in overall.groupby(["press", "controller", "budget_label"], sort=False):
        first, by_k = group.iloc[0], group.set_index("k")
        name = first["press"]
        if first["controller"] != "none":
            name += f" + {first['controller']}"
        cells = [
            f"{number(by_k.loc[k, 'pass_at_k'])} {interval(by_k.loc[k])}"
            if k in by_k.index
            else "–"
            for k in ks
        ]
        dagger = "" if set(first["point_ids"]).isdisjoint(degenerate) else f" {DEGENERATE}"
        rows.append(
            [
                name, f"{first['budget_label']}{dagger}", first["n_samples"], *cells,
                f"{number(first['difference'], '{:+.2f}')} "
                f"{interval(first, 'difference_ci_low', 'difference_ci_high', sign=True)}"
                if pd.notna(first["difference"]) else "–",
                number(first["variance_between"], "{:.3f}"),
                number(first["variance_within"], "{:.3f}"),
            ]
        )  # fmt: skip
    header = [
        "press", "budget", "samples", *(f"pass@{k}" if k > 1 else "mean (pass@1)" for k in ks),
        "to the full cache", "variance between prompts", "between samples",
    ]  # fmt: skip
    return markdown(header, rows)


def verdicts(samples: pd.DataFrame) -> Iterator[str]:
    """One sentence on how much of the variance is the samples' own."""
    overall = samples[(samples["bin"] == ALL_BINS) & (samples["k"] == 1)]
    sampled = overall[(overall["temperature"] > 0) & overall["alike"].notna()]
    if len(sampled):
        low, high = (
            percent(round(1 - x, 2)) for x in (sampled["alike"].max(), sampled["alike"].min())
        )
        share = low if low == high else f"{low} to {high}"
        n = sampled["n_samples"].max()
        yield (
            f"Sampled {n} times, a prompt's own answers make {share} of the variance of the score; "
            "the rest lies between prompts, which more samples do not make fewer."
        )
    same = overall[(overall["temperature"] == 0) & (overall["variance_within"] == 0)]
    if len(same):
        yield (
            f"Decoding is greedy and no score differs between seeds in {len(same)} of "
            f"{len(overall)} configurations: these seeds are one sample."
        )


def noise(
    numerics: pd.DataFrame, equivalence: pd.DataFrame, comparisons: pd.DataFrame, alpha: float
) -> Iterator[str]:
    """What rounding alone changes, and which points lie within it.

    A point whose own test against the full cache (`comparisons`) finds a change is not named.
    """
    overall = comparisons[comparisons["primary"] & (comparisons["bin"] == ALL_BINS)]
    changed = overall.loc[overall["p"] <= alpha, "point_id"]
    apart = numerics[numerics["bin"] == ALL_BINS]
    moved = apart[apart["n_differ"] > 0]
    for _, row in moved.sort_values("floor", ascending=False).iloc[:SHOWN].iterrows():
        inside = equivalence[
            (equivalence["bin"] == ALL_BINS)
            & equivalence["variant_id"].isin([row["variant_a"], row["variant_b"]])
            & (equivalence["loss"].abs() <= row["floor"])
            & ~equivalence["point_id"].isin(changed)
        ]
        names = [f"{r['press']} at {r['budget_label']}" for _, r in inside.iterrows()]
        told = f" Noise by this: {', '.join(dict.fromkeys(names))}." if names else ""
        yield (
            f"Rounding alone ({row['differs_in']}) changes the score of {row['n_differ']} of "
            f"{row['n_pairs']} full-cache answers and moves a mean by up to "
            f"{row['floor']:.3f}; smaller differences are noise.{told}"
        )
