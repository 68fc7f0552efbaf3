"""Warnings that a reader must know before trusting a number."""

import re
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from kvx.analyze.columns import ALL_BINS, is_full
from kvx.config.analyze import AnalyzeConfig
from kvx.config.numbers import plural
from kvx.report.tables import by_reason
from kvx.report.wording import ADAPTED, token_range
from kvx.stats.clustered import LEAST_CLUSTERS, TOO_FEW
from kvx.stats.repeats import unsteady

CAP_RATE = 0.5  # a full cache cut this often cannot show that compression keeps answers from ending
SHOWN = 3  # points named where many have the same fault
SMALL_BIN = 20
REASONS = 2  # why a point is degenerate: the most frequent ones
_KEEPS = re.compile(r"keeps [\d.]+ entries")


def warnings(
    stats: pd.DataFrame,
    comparisons: pd.DataFrame,
    left_out: dict[str, str],
    caveats: Sequence[str],
    config: AnalyzeConfig,
    requests: pd.DataFrame,
) -> list[str]:
    """Sentences, most serious first; empty without a warning.

    `caveats` are what is to be said of hazard models, `requests` those of all points.
    """
    primary = stats[stats["primary"]]
    bins = primary[primary["bin"] != ALL_BINS]
    overall = primary[primary["bin"] == ALL_BINS]
    full = bins[is_full(bins)]
    return [
        *_left_out(left_out),
        *_unproved(overall),
        *(f"**Hazard model.** {caveat}" for caveat in caveats),
        *_floor(full, config.baseline_floor),
        *_cap(full),
        *_cut(overall),
        *_degenerate(overall, requests),
        *_adapted(overall, requests),
        *_lost(overall),
        *_without_full_cache(overall, comparisons),
        *_small(bins),
        *_unsteady(overall),
    ]


def not_applicable(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Sentences, one for each press, model and reason."""
    for (press, model, why), budgets in by_reason(rows).items():
        at = ", ".join(budgets)
        yield f"**Not applicable.** {press} on {model} at {at}: {why}; nothing was run."


def _left_out(left_out: dict[str, str]) -> Iterator[str]:
    """Sentences, one for each reason that several points share."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        if len(names) == 1:
            yield f"**Left out.** Point {names[0]} is in no table: {reason}."
            continue
        shown = ", ".join(names[:SHOWN])
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield f"**Left out.** {len(names)} points are in no table: {reason} ({shown}{more})."


def _unproved(overall: pd.DataFrame) -> Iterator[str]:
    names = overall.loc[~overall["budget_verified"], "point_id"]
    if len(names):
        yield (
            f"**Budget not proved** for {', '.join(names)}: see the budget proof above. What is "
            "said here about a budget may be said about its label."
        )


def _floor(full: pd.DataFrame, floor: float) -> Iterator[str]:
    for _, rows in full[full["mean"] < floor].groupby("variant_id", sort=False):
        ranges = ", ".join(dict.fromkeys(token_range(r) for _, r in rows.iterrows()))
        first = rows.iloc[0]
        yield (
            f"**Full cache at the floor.** {first['model']} with the full cache scores below "
            f"{floor:g} on {first['dataset']} at {ranges} tokens (mean {rows['mean'].mean():.2f}). "
            "There is little to lose there: a small difference does not mean that compression does "
            "no harm."
        )


def _cap(full: pd.DataFrame) -> Iterator[str]:
    capped = full[full["truncated_rate"] >= CAP_RATE]
    if len(capped):
        ranges = ", ".join(dict.fromkeys(token_range(r) for _, r in capped.iterrows()))
        yield (
            "**Full cache at the token cap.** With the full cache up to "
            f"{capped['truncated_rate'].max():.0%} of the responses at {ranges} tokens are cut at "
            "max_new_tokens: whether compression keeps generations from ending cannot be seen "
            "there."
        )


def _cut(overall: pd.DataFrame) -> Iterator[str]:
    """Once for all points of a variant: they run the same prompts."""
    cut = overall[overall["n_contexts_cut"].fillna(0) > 0].drop_duplicates("variant_id")
    for _, row in cut.iterrows():
        yield (
            f"**Contexts that were cut.** {row['model']} on {row['dataset']}: "
            f"{row['n_contexts_cut']:.0f} of {row['n_requests']} contexts did not fit the model "
            f"and lost {row['context_tokens_cut_mean']:,.0f} tokens on average "
            "(dataset.overflow). An answer that stood there cannot be found by any press."
        )


def _degenerate(overall: pd.DataFrame, requests: pd.DataFrame) -> Iterator[str]:
    marked = requests[requests["degenerate"].astype(bool)]
    reasons = dict(iter(marked.groupby("point_id")["degenerate_reason"]))
    for _, row in overall[overall["n_degenerate"] > 0].iterrows():
        most = reasons[row["point_id"]].map(_without_numbers).value_counts().index
        why = f" ({'; '.join(most[:REASONS])})" if len(most) else ""
        yield (
            f"**Degenerate point.** {row['point_id']}: in {row['n_degenerate']} of "
            f"{row['n_requests']} requests {row['press']} is not what it is meant to be{why}. Do "
            "not count these as that press's quality."
        )


def _adapted(overall: pd.DataFrame, requests: pd.DataFrame) -> Iterator[str]:
    """Once for all points of a press and model that have the same reason."""
    told: set[tuple[str, str, str]] = set()
    reasons = dict(iter(requests.dropna(subset="adapted").groupby("point_id")["adapted"]))
    for _, row in overall[overall["n_adapted"].fillna(0) > 0].iterrows():
        for reason in reasons[row["point_id"]].unique():
            about = (str(row["press"]), str(row["model"]), str(reason))
            if about not in told:
                told.add(about)
                yield (
                    f"**Adapted press ({ADAPTED}).** {row['press']} on {row['model']} ranks by the "
                    f"model's own queries: {reason}. With press.queries=kvpress it ranks as "
                    "kvpress does there."
                )


def _without_numbers(reason: str) -> str:
    """The same for requests that differ in how many entries they keep only."""
    return _KEEPS.sub("keeps too few entries", str(reason))


def _lost(overall: pd.DataFrame) -> Iterator[str]:
    for _, row in overall[overall["n_missing"] > 0].iterrows():
        start, n = f"**Requests without a response.** {row['point_id']}:", row["n_requests"]
        if row["n_missing"] == n:
            yield f"{start} all {n} have no answer and count as wrong."
        else:
            yield (
                f"{start} {row['n_missing']} of {n} have no answer and count as wrong; the mean of "
                f"the others alone is {row['complete_mean']:.2f}."
            )


def _without_full_cache(overall: pd.DataFrame, comparisons: pd.DataFrame) -> Iterator[str]:
    compressed = overall.loc[~is_full(overall), "point_id"]
    alone = [p for p in compressed if p not in set(comparisons["point_id"])]
    if alone:
        yield (
            f"**No full cache** beside {', '.join(alone)}: run budget=1.0 too to know what "
            "compression cost."
        )


def _small(bins: pd.DataFrame) -> Iterator[str]:
    """Texts count, not questions on them: those of one text are right or wrong together."""
    if not len(bins) or bins["n_clusters"].min() >= SMALL_BIN:
        return
    row = bins.sort_values("n_clusters").iloc[0]
    holds = f"{row['n']} scored examples"
    if row["n_clusters"] < row["n"]:
        holds += f" that share {plural(row['n_clusters'], 'text')}"
    text = f"**Small bins.** The smallest holds {holds}: read the intervals, not the means."
    if (bins["ci_method"] == TOO_FEW).any():
        text += f" With fewer than {LEAST_CLUSTERS} texts no interval would be worth printing."
    yield text


def _unsteady(overall: pd.DataFrame) -> Iterator[str]:
    """Latencies measured beside other work, or that do not repeat."""
    found: dict[str, str] = {}
    for _, row in overall[overall["n_latency"] > 0].iterrows():
        seen = (row[name] for name in ("latency_spread", "others_cpu_share", "gpu_others_max"))
        reasons = unsteady(*(None if pd.isna(value) else float(value) for value in seen))
        if reasons:
            found[row["point_id"]] = ", ".join(reasons)
    if found:
        points = "; ".join(f"{point} ({why})" for point, why in list(found.items())[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        yield (
            f"**Latencies on a loaded machine.** {points}{more}. Points of a run take turns, which "
            "slows all alike, but smaller differences say nothing: measure on a quiet machine."
        )
