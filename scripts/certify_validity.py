"""How often the promise of a certificate is broken: made-up populations and real prompts.

    python scripts/certify_validity.py outputs/runs/certify_demo outputs/runs/guard_study \\
        > docs/results/certificates.md

The made-up ones have a known risk. Of a real experiment all prompts together are the population,
and alpha is set just below the risk of one budget after the other: where certifying that budget
breaks the promise, and is most tempting.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.frames import load_experiment
from kvx.certify.losses import LossReader
from kvx.certify.series import all_series
from kvx.config.certify import CertifyConfig, Loss
from kvx.errors import UserError
from kvx.report.tables import markdown
from kvx.stats.intervals import clopper_pearson
from kvx.stats.resplits import Kept, halves, redraws, synthetic
from kvx.stats.risk_control import BETTING, BOUNDED, EXACT, RiskTest

ALPHA, DELTA, DRAWS, FEWER, SPLITS = 0.05, 0.05, 20_000, 2_000, 1_000
ABOVE = 1e-9  # a risk this little above alpha breaks the promise
HEAD = """# Is the promise of a certificate kept?

Made by

    python scripts/certify_validity.py {names}

delta = {delta:g}: the promise may be broken that often, and no oftener.

## Populations of known risk, {draws:,} certificates each ({fewer:,} by betting)

Budgets from the largest down; a promise is broken if any certified budget has a risk above alpha.
Losses are 0 or 1 for the exact test, graded (beta) for the others.
"""
REAL = """
## Real prompts, {splits:,} resplits each

All prompts of an experiment are the population.

- *Halves*: half of the prompts certify, drawn without replacement. Broken by the mean of all
  prompts, and by that of the other half. The latter is a measurement itself, and lies above alpha
  more often than the truth does: what one half misses is in the other.
- *Redrawn*: as many prompts as there are, with replacement.
"""


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
        for (name, risks), (test, draw) in (
            (case, how)
            for case in cases.items()
            for how in ((EXACT, binary), (BOUNDED, graded), (BETTING, graded))
        ):
            draws = DRAWS if test is not BETTING else FEWER
            found = synthetic(draw(risks, n), risks, alpha, DELTA, test, draws, seed=0)
            yield [f"{name}", test.name, str(n), f"{alpha:g}", *counts(found)]


def counts(found: Kept) -> list[str]:
    low, high = clopper_pearson(found.n_broken, found.n, 0.95)
    share = found.n_broken / found.n
    return [f"{found.n_chosen / found.n:.3f}", f"{share:.4f} [{low:.4f}, {high:.4f}]"]


@dataclass(frozen=True)
class Resampled:
    """A curve with something at stake: certifying the budget, whose risk is `risk`."""

    dataset: str
    loss: Loss
    curve: str
    n: int
    halves: Kept
    redrawn: Kept
    budget: str = ""
    risk: float = 0.0


def real(folder: Path, loss: Loss) -> Iterator[Resampled]:
    """Every curve at alpha (no budget), then with alpha just below the risk of each budget."""
    output = folder.parent.parent
    experiment = load_experiment(folder, output)
    reader = LossReader(experiment, CertifyConfig(loss=loss), output)
    for curve in all_series(experiment.points):
        twin = experiment.full_cache(curve.first)
        if twin is None:
            continue
        losses = np.stack([reader.of(p, twin).by_prompt for p in curve.points])
        test = reader.test(curve.first, losses.shape[1], DELTA)
        dataset, n = str(curve.first.info["dataset"]), losses.shape[1]
        kept = resampled(losses, ALPHA, test)
        yield Resampled(dataset, loss, curve.press, n, *kept)
        for point, risk in zip(curve.points, losses.mean(axis=1).tolist(), strict=True):
            if 0 < risk < 1:
                kept = resampled(losses, risk - ABOVE, test)
                label = str(point.info["budget_label"])
                yield Resampled(dataset, loss, curve.press, n, *kept, label, risk)


def resampled(losses: NDArray[np.float64], alpha: float, test: RiskTest) -> tuple[Kept, Kept]:
    return (
        halves(losses, alpha, DELTA, test, SPLITS, seed=0),
        redraws(losses, alpha, DELTA, test, SPLITS, seed=1),
    )


def share(k: int) -> str:
    return f"{k / SPLITS:.3f}"


def as_given(rows: Sequence[Resampled]) -> list[list[str]]:
    """A line for each curve of which anything was certified."""
    return [
        [
            f"{r.curve}, {r.dataset}, {r.loss.name}",
            str(r.n),
            share(r.halves.n_chosen),
            share(r.halves.n_broken),
            share(r.halves.n_over),
            share(r.redrawn.n_chosen),
            share(r.redrawn.n_broken),
        ]
        for r in rows
        if r.halves.n_chosen or r.redrawn.n_chosen
    ]


def at_stake(rows: Sequence[Resampled]) -> list[list[str]]:
    """A line for each dataset and loss: the worst of its curves and budgets."""
    lines = []
    for dataset, loss in dict.fromkeys((r.dataset, r.loss) for r in rows):
        own = [r for r in rows if (r.dataset, r.loss) == (dataset, loss)]
        worst = max(own, key=lambda r: r.redrawn.n_broken)
        where = f"{worst.curve} {worst.budget}, risk {worst.risk:.3f}"
        lines.append(
            [
                f"{dataset}, {loss.name}", str(len(own)), str(own[0].n),
                share(max(r.halves.n_broken for r in own)),
                share(max(r.halves.n_over for r in own)),
                share(worst.redrawn.n_broken), where if worst.redrawn.n_broken else "–",
            ]
        )  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="how often a certificate's promise is broken")
    parser.add_argument("experiments", type=Path, nargs="*", help="folders OUTPUT/runs/NAME")
    folders: list[Path] = parser.parse_args().experiments
    names = " ".join(f"outputs/runs/{f.name}" for f in folders)
    print(HEAD.format(names=names, delta=DELTA, draws=DRAWS, fewer=FEWER))
    header = ["population", "test", "prompts", "alpha", "certified some", "broken [95%]"]
    print(markdown(header, list(made_up())))
    if not folders:
        return
    try:
        rows = [row for folder in folders for loss in Loss for row in real(folder, loss)]
    except (UserError, OSError) as error:
        sys.exit(f"certify_validity: {error}")
    plain, stakes = [r for r in rows if not r.budget], [r for r in rows if r.budget]
    print(REAL.format(splits=SPLITS))
    header = [
        "curve", "prompts", "halves: certified some", "broken by all", "above in the other half",
        "redrawn: certified some", "broken",
    ]  # fmt: skip
    print(f"### alpha = {ALPHA:g}\n\n{markdown(header, as_given(plain))}\n")
    print(
        f"Of the other {len(plain) - len(as_given(plain))} curves nothing was ever certified.\n\n"
        "### alpha just below the risk of a budget: the worst\n"
    )
    header = [
        "data, loss", "curves × budgets", "prompts", "halves: broken by all",
        "above in the other half", "redrawn: broken", "where",
    ]  # fmt: skip
    print(markdown(header, at_stake(stakes)))
    split = max((r.halves.n_broken for r in rows), default=0)
    drawn = max((r.redrawn.n_broken for r in rows), default=0)
    print(f"\nWorst of {len(rows)}: {share(split)} in halves, {share(drawn)} redrawn.")


if __name__ == "__main__":
    main()
