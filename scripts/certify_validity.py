"""How often the promise of a certificate is broken: made-up populations and real prompts.

    python scripts/certify_validity.py --experiment outputs/runs/certify_demo \\
        --output outputs > docs/results/certificates.md

The made-up ones have a known risk. Of a real experiment all prompts together are the population,
and alpha is set just below the risk of one budget after the other: where certifying that budget
breaks the promise, and is most tempting.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.frames import load_experiment
from kvx.certify.losses import LossReader
from kvx.certify.series import all_series
from kvx.certify_config import CertifyConfig, Loss
from kvx.errors import UserError
from kvx.report.tables import markdown
from kvx.stats.certify import PValue, binomial_p, hoeffding_bentkus_p
from kvx.stats.intervals import clopper_pearson
from kvx.stats.resplits import Kept, halves, redraws, synthetic

DELTA, DRAWS, SPLITS = 0.05, 20_000, 1_000
ABOVE = 1e-9  # a risk this little above alpha breaks the promise
EXACT, BOUNDED = "exact binomial", "Hoeffding–Bentkus"


def binary(risks: list[float], n: int) -> Callable[[np.random.Generator], NDArray[np.float64]]:
    """Losses of 0 and 1; what is lost at a budget is lost below it too."""
    levels = np.array(risks)[:, None]
    return lambda rng: (rng.random((1, n)) < levels).astype(np.float64)


def graded(risks: list[float], n: int) -> Callable[[np.random.Generator], NDArray[np.float64]]:
    """Losses anywhere in [0, 1], most of them near 0, independent between budgets."""
    means = np.array(risks)[:, None]
    return lambda rng: rng.beta(0.3 * means, 0.3 * (1 - means), (len(risks), n))


def made_up() -> Iterator[list[str]]:
    for n, alpha in ((59, 0.05), (100, 0.05), (200, 0.05), (500, 0.05), (200, 0.1), (60, 0.2)):
        over = alpha + ABOVE
        cases = {
            "just above alpha": [over],
            "safe, then above": [alpha / 5, alpha / 2, over, 2 * alpha],
            "above, then safe": [over, alpha / 2, alpha / 2],
            "all above": [over] * 6,
        }
        for (name, risks), (test, p_value, draw) in (
            (case, how)
            for case in cases.items()
            for how in ((EXACT, binomial_p, binary), (BOUNDED, hoeffding_bentkus_p, graded))
        ):
            found = synthetic(draw(risks, n), risks, alpha, DELTA, p_value, DRAWS, seed=0)
            yield [f"{name}", test, str(n), f"{alpha:g}", *counts(found)]


def counts(found: Kept) -> list[str]:
    low, high = clopper_pearson(found.n_broken, found.n, 0.95)
    share = found.n_broken / found.n
    return [f"{found.n_chosen / found.n:.3f}", f"{share:.4f} [{low:.4f}, {high:.4f}]"]


def real(folder: Path, output: Path, loss: Loss) -> Iterator[list[str]]:
    experiment = load_experiment(folder, output)
    reader = LossReader(experiment, CertifyConfig(loss=loss), output)
    for curve in all_series(experiment.points):
        twin = experiment.twin(curve.first)
        if twin is None:
            continue
        losses = np.stack([reader.of(p, twin).by_prompt for p in curve.points])
        test, p_value = reader.test(curve.first)
        risks = losses.mean(axis=1)
        labels = [p.info["budget_label"] for p in curve.points]
        for label, risk in zip(labels, risks, strict=True):
            if 0 < risk < 1:
                name = f"{curve.press}, {curve.first.info['dataset']}, {loss.name}"
                row = [name, test, label, f"{risk:.3f}", str(losses.shape[1])]
                yield [*row, *resampled(losses, float(risk) - ABOVE, p_value)]


def resampled(losses: NDArray[np.float64], alpha: float, p_value: PValue) -> list[str]:
    split = halves(losses, alpha, DELTA, p_value, SPLITS, seed=0)
    drawn = redraws(losses, alpha, DELTA, p_value, SPLITS, seed=1)
    shares = (split.n_chosen, split.n_broken, split.n_over, drawn.n_broken)
    return [f"{k / SPLITS:.3f}" for k in shares]


def main() -> None:
    parser = argparse.ArgumentParser(description="how often a certificate's promise is broken")
    parser.add_argument("--experiment", type=Path, action="append", default=[])
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="where its data lie")
    parser.add_argument("--loss", type=Loss, choices=list(Loss), action="append")
    asked = parser.parse_args()
    print("# Is the promise of a certificate kept?\n")
    print(
        f"Made by `python scripts/certify_validity.py`. delta = {DELTA:g}: the promise may be "
        "broken that often, and no oftener.\n\n"
        f"## Populations of known risk, {DRAWS:,} certificates each\n\n"
        "Budgets from the largest down; a promise is broken if any certified budget has a risk "
        "above alpha. Losses are 0 or 1 for the exact test, graded (beta) for the other.\n"
    )
    header = ["population", "test", "prompts", "alpha", "certified some", "broken [95%]"]
    print(markdown(header, list(made_up())))
    if not asked.experiment:
        return
    print(
        f"\n## Real prompts, {SPLITS:,} resplits each\n\n"
        "All prompts of an experiment are the population. alpha is set just below the risk of one "
        "budget, so certifying that budget breaks the promise. *halves*: half of the prompts "
        "certify, drawn without replacement; broken by the mean of all prompts, and by that of the "
        "other half, which is a measurement itself and lies above alpha more often than the truth "
        "does (what one half misses is in the other). *redrawn*: as many prompts as there are, "
        "with replacement.\n"
    )
    header = [
        "curve", "test", "budget at stake", "its risk", "prompts", "halves: certified some",
        "broken by all", "above in the other half", "redrawn: broken",
    ]  # fmt: skip
    rows: list[list[str]] = []
    try:
        for folder in asked.experiment:
            for loss in asked.loss or list(Loss):
                rows += real(folder, asked.output, loss)
    except UserError as error:
        sys.exit(f"certify_validity: {error}")
    print(markdown(header, rows))
    worst = max((float(row[-1]) for row in rows), default=0.0)
    split = max((float(row[-3]) for row in rows), default=0.0)
    print(f"\nWorst of {len(rows)} rows: {split:.3f} in halves, {worst:.3f} redrawn.")


if __name__ == "__main__":
    main()
