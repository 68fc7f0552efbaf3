"""False sentences in a report where no press changes anything.

Draws scores of a full cache and of points that answer as well, passes them through the tests of
`comparisons` and counts what the report would say: python -m scripts.null_study
"""

import argparse
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.analyze.columns import ALL_BINS
from kvx.analyze.correction import correct, correct_comparisons
from kvx.config.analyze import Family
from kvx.report.verdicts import Verdict, lengths, verdict
from kvx.stats.clustered import paired_difference
from kvx.stats.interaction import interaction_p
from kvx.stats.multiplicity import benjamini_hochberg

N_POINTS, N_BINS, N_KINDS, ALPHA = 50, 5, 4, 0.05
Scores = NDArray[np.float64]


def draw(
    rng: np.random.Generator, n_texts: int, per_text: int, graded: bool, changed: float
) -> tuple[Scores, Scores, NDArray[np.int64], NDArray[np.int64]]:
    """Scores of the full cache [n] and of points [N_POINTS, n], bins [n] and clusters [n].

    A text lies in one bin. A share `changed` of a point's answers is drawn anew, text by text for
    half of them, so that answers about one text change together.
    """
    texts = np.repeat(np.arange(N_BINS * n_texts), per_text)
    bins = texts // n_texts
    quality = rng.beta(2, 1, (N_BINS * n_texts))

    def answer(shape: tuple[int, ...]) -> Scores:
        rate = np.broadcast_to(quality[texts], shape)
        drawn = rng.beta(2 * rate, 2 * (1 - rate)) if graded else rng.random(shape) < rate
        return np.asarray(drawn, dtype=np.float64)

    full = answer(texts.shape)
    shape = (N_POINTS, len(texts))
    together = rng.random((N_POINTS, N_BINS * n_texts))[:, texts] < changed
    alone = rng.random(shape) < changed
    half = rng.random((N_POINTS, N_BINS * n_texts))[:, texts] < 0.5
    return full, np.where(np.where(half, together, alone), answer(shape), full), bins, texts


def rows_of(full: Scores, points: Scores, bins: NDArray[Any], texts: NDArray[Any]) -> pd.DataFrame:
    """What comparisons holds of them."""
    rows = []
    for number, ours in enumerate(points):
        for index in (*range(N_BINS), ALL_BINS):
            here = np.full(len(bins), True) if index == ALL_BINS else bins == index
            found = paired_difference(ours[here], full[here], texts[here].tolist(), 1 - ALPHA)
            known = None if np.isnan(found.p) else found.p
            row = {
                "variant_id": "v", "press": str(number), "point_id": str(number), "bin": index,
                "metric": "m", "primary": True, "higher_is_better": True, "budget_kind": "ratio",
                "budget_asked": 0.5, "n_pairs": found.n_pairs, "n_clusters": found.n_clusters,
                "n_lost": found.n_lost, "n_won": found.n_won, "difference": found.difference,
                "ci_low": found.interval.low, "ci_high": found.interval.high, "p": known,
            }  # fmt: skip
            if index == ALL_BINS:
                p = interaction_p(ours - full, bins, texts.tolist(), 0)
                row["interaction_p"] = None if np.isnan(p) else p
            rows.append(row)
    return pd.DataFrame(correct_comparisons(rows, Family.experiment))


def false_sentences(table: pd.DataFrame) -> dict[str, int]:
    """Losses and gains over all bins, lengths named, and what stood there without a correction."""
    ranges = {(str(p), b): f"{b}" for p in range(N_POINTS) for b in range(N_BINS)}
    counted = {"overall": 0, "lengths": 0, "uncorrected": 0}
    for _, rows in table.groupby("point_id"):
        bins = rows[rows["bin"] != ALL_BINS]
        (overall,) = (row for _, row in rows[rows["bin"] == ALL_BINS].iterrows())
        counted["overall"] += verdict(overall, ALPHA) in (Verdict.loss, Verdict.gain)
        counted["lengths"] += bool(lengths(overall, bins, ranges, ALPHA))
        counted["uncorrected"] += bool(overall["p"] < ALPHA) if pd.notna(overall["p"]) else 0
    return counted


def bold(rng: np.random.Generator, n_texts: int, per_text: int) -> int:
    """Bold cells among excesses of catastrophes, each as likely with the full cache."""
    texts = np.repeat(np.arange(N_BINS * n_texts), per_text)
    rows: list[dict[str, Any]] = []
    for _ in range(N_POINTS * N_KINDS):
        derailed = rng.beta(0.5, 4.5, N_BINS * n_texts)[texts]
        here, there = rng.random((2, len(texts))) < derailed
        found = paired_difference(here * 1.0, there * 1.0, texts.tolist(), 1 - ALPHA)
        rows.append({"excess_p": None if np.isnan(found.p) else found.p})
    correct(rows, "excess_p", "excess_p_bh", benjamini_hochberg, ())
    return sum(row["excess_p_bh"] is not None and row["excess_p_bh"] < ALPHA for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{args.reports} null reports of {N_POINTS} points x {N_BINS} bins: sentences a report")
    print("| scores | texts a bin | questions a text | uncorrected | overall | lengths | bold |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for graded in (False, True):
        for n_texts, per_text in ((24, 1), (10, 12), (100, 1)):
            rng = np.random.default_rng(args.seed)
            seen = [
                false_sentences(rows_of(*draw(rng, n_texts, per_text, graded, 0.2)))
                for _ in range(args.reports)
            ]
            bolds = np.mean([bold(rng, n_texts, per_text) for _ in range(args.reports)])
            mean = pd.DataFrame(seen).mean()
            print(
                f"| {'graded' if graded else '0/1'} | {n_texts} | {per_text} | "
                f"{mean['uncorrected']:.2f} | {mean['overall']:.3f} | {mean['lengths']:.3f} | "
                f"{bolds:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
