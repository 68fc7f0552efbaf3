"""controller_stats: every controller over all points that it followed, and against the others.

The points of an experiment are pooled, response by response, each beside the same press at the same
budget without a controller. Prompts are resampled together in all tables of one experiment.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from kvx.analyze.bin_stats import Row
from kvx.analyze.columns import BUDGET, groups
from kvx.analyze.frames import Experiment
from kvx.analyze.guard_stats import beside, floats, numbers, pairs, responses, row_of, use
from kvx.config.analyze import AnalyzeConfig
from kvx.learning.live_stats import ANY, BOOTSTRAP, KINDS, Figure, cost_figures, effect_figures
from kvx.learning.ranking import Resampler

NONE = "none"
FULL = "always full"
# the same press at a larger budget, the nearest to what controllers used on average: what that
# buys without them
STATIC = "static budget"
# a controller at such a budget, where none was run without one
LARGER = ", larger budget"
# one press at one budget: what controllers are compared at
CELL = ["variant_id", "seed", "press", *BUDGET]
SAME = [*CELL, "example_id"]


def controller_stats(experiment: Experiment, config: AnalyzeConfig) -> list[Row]:
    """One row per group, controller and figure; none without a controller, or only with them."""
    if not any(p.is_guarded for p in experiment.points):
        return []
    seen = pooled(experiment)
    if seen.empty:
        return []
    plain = seen[seen["controller"] == NONE]
    by = Resampler(int(seen["prompt"].max()) + 1, config.n_boot, config.confidence, config.seed)
    both = beside(seen, plain, SAME)
    rows: list[Row] = []
    for group, rows_of_it in groups(both):
        chosen = both[rows_of_it]
        for controller, own in chosen.groupby("controller", sort=False):
            about = {"group": group, "controller": str(controller)}
            figures = cost_figures(use(own, experiment.events), by)
            figures += effect_figures(pairs(own), by)
            rows += [about | row_of(f) | {"versus": None} for f in figures]
        rows += [{"group": group} | row for row in _versus(chosen, by)]
    return rows


def pooled(experiment: Experiment) -> pd.DataFrame:
    """Every response to a prompt that a controller was tried on, under the budget it was tried at.

    The full cache and larger budgets stand beside each of them: without a controller they are
    called `always full` and `static budget`, with one `<controller>, larger budget`.
    """
    seen = responses(experiment)
    of = {p.id: p for p in experiment.points}
    for name in (*CELL, "dataset", "budget_label", "budget"):
        known = {i: experiment.series_columns(p)[name] for i, p in of.items()}
        seen[name] = seen["point_id"].map(known)
    seen["controller"] = seen["point_id"].map(experiment.controller_labels)
    guarded = seen["point_id"].map({i: p.is_guarded for i, p in of.items()})
    full = seen["point_id"].map({i: p.is_full_cache for i, p in of.items()})
    seen["cell"] = seen.groupby(CELL, sort=False).ngroup()
    # the budgets that controllers were compared at with none
    compared = set(seen[guarded]["cell"]) & set(seen[~guarded & ~full]["cell"])
    tried = seen[guarded & seen["cell"].isin(compared)]
    parts = [tried]
    for _, cell in tried.drop_duplicates("cell").iterrows():
        same = (seen["variant_id"] == cell["variant_id"]) & (seen["seed"] == cell["seed"])
        own = same & (seen["press"] == cell["press"])
        here = seen["cell"] == cell["cell"]
        above = (seen["budget"] > cell["budget"]) & ~seen["cell"].isin(compared)
        budgets, steps = _budgets(seen[here & guarded])
        used = (budgets * steps).sum() / steps.sum() if steps.sum() else cell["budget"]
        static = _nearest(seen[own & above & ~guarded & ~full], used)
        always = seen[same & full & ~guarded].drop_duplicates("example_id")
        always = always.assign(**{f"excess_{kind}": 0.0 for kind in KINDS})  # by definition
        labels = {n: cell[n] for n in ("press", *BUDGET, "budget_label", "budget")}
        idle = {NONE: seen[here & ~guarded & ~full], STATIC: static, FULL: always}
        # a mean budget is the press's own; the saving is counted from the cell's
        parts += [_idle(frame).assign(controller=n, **labels) for n, frame in idle.items()]
        for name, moved in seen[own & above & guarded].groupby("controller"):
            parts.append(_nearest(moved, used).assign(controller=f"{name}{LARGER}", **labels))
    found = pd.concat(parts, ignore_index=True)
    found["nominal"] = found["budget"].where(found["controller"] != FULL, found["nominal"])
    return found.assign(prompt=numbers(found["cluster"]))


def _nearest(larger: pd.DataFrame, used: float) -> pd.DataFrame:
    """Of responses at larger budgets those at the one nearest to the mean budget `used`."""
    if larger.empty:
        return larger
    nearest = (larger["budget"] - used).abs().argmin()
    found: pd.DataFrame = larger[larger["cell"] == larger["cell"].iloc[nearest]]
    return found


def _idle(frame: pd.DataFrame) -> pd.DataFrame:
    """Responses without a controller, as one that never does anything."""
    return frame.assign(
        guard_interventions=0,
        guard_mean_budget=frame["nominal"],
        guard_recomputed_tokens=0,
        guard_decoded_tokens=frame["output_tokens"],
        kv_bytes_host=0,
    )


def _versus(chosen: pd.DataFrame, by: Resampler) -> list[Row]:
    """Each controller against each other one, on the responses that both have."""
    rows: list[Row] = []
    names = [n for n in dict.fromkeys(chosen["controller"]) if n != NONE]
    for one in names:
        for other in names:
            if one == other:
                continue
            left, right = (chosen[chosen["controller"] == n] for n in (one, other))
            both = left.merge(right, on=SAME, suffixes=("", "_other"), validate="1:1")
            rows += [
                {"controller": one} | row_of(figure) | {"versus": other}
                for figure in _differences(both, by)
            ]
    return rows


def _differences(both: pd.DataFrame, by: Resampler) -> Iterator[Figure]:
    for kind in KINDS:
        shown = floats(both, f"excess_{kind}_there") == 1
        name = f"excess_{kind}" if kind != "instant" else "excess_looping"
        change = floats(both, f"{name}_other") - floats(both, name)
        yield _mean("prevented_difference", kind, both, change, shown, by)
    everywhere = np.ones(len(both), bool)
    yield _budget_difference(both, by)
    dropped = floats(both, "dropped") - floats(both, "dropped_other")
    yield _mean("dropped_difference", None, both, dropped, everywhere, by)
    sound = floats(both, f"excess_{ANY}_there") == 0
    acted = [floats(both, f"guard_interventions{end}") > 0 for end in ("", "_other")]
    change = acted[0].astype(float) - acted[1].astype(float)
    yield _mean("false_interventions_difference", None, both, change, sound, by)


def _budgets(frame: pd.DataFrame, end: str = "") -> tuple[np.ndarray, np.ndarray]:
    """Each response's [n] mean budget and its weight: decoded steps x prompt entries."""
    steps = floats(frame, f"guard_decoded_tokens{end}") * floats(frame, f"compressed_tokens{end}")
    budgets = floats(frame, f"guard_mean_budget{end}")
    known = ~np.isnan(budgets * steps)
    return np.where(known, budgets, 0.0), np.where(known, steps, 0.0)


def _budget_difference(both: pd.DataFrame, by: Resampler) -> Figure:
    """Of the mean budgets as `cost_figures` has them."""
    (one, weight), (other, other_weight) = _budgets(both), _budgets(both, "_other")
    clusters = both["prompt"].to_numpy(np.int64)
    found = by.ratio_difference(
        (one * weight, weight), (other * other_weight, other_weight), clusters
    )
    prompts = len(np.unique(clusters))
    return Figure(
        "mean_budget_difference",
        None,
        len(both),
        prompts,
        None,
        found.value,
        found.interval,
        BOOTSTRAP,
    )


def _mean(
    name: str,
    kind: str | None,
    both: pd.DataFrame,
    change: np.ndarray,
    where: np.ndarray,
    by: Resampler,
) -> Figure:
    known = where & ~np.isnan(change)
    clusters = both["prompt"].to_numpy(np.int64)[known]
    found = by.ratio(change[known], np.ones(int(known.sum())), clusters)
    prompts = len(np.unique(clusters))
    return Figure(
        name, kind, int(known.sum()), prompts, None, found.value, found.interval, BOOTSTRAP
    )
