"""The live guard's study: its second half of runs, and docs/results/guard_live.md.

    make guard-live N_PROMPTS=15

calls this twice. `controls` runs what depends on what the guard did: chance that acts as often as
it, and the same presses without a controller at its mean budget. `page` writes the results page
from what kvx.analyze made of all of them, and compares the latencies of what was measured alone.
"""

import argparse
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from kvx.analyze import tradeoff
from kvx.analyze.controller_stats import FULL, LARGER, SAME, STATIC, pooled
from kvx.analyze.frames import load_experiment
from kvx.analyze.guard_stats import beside
from kvx.guard.events import INTERVENTIONS
from kvx.learning.live_stats import ANY
from kvx.learning.ranking import Estimate, Resampler
from kvx.report.controller_tables import prevented_table, price_table, versus_table
from kvx.report.guard_section import NO_KIND, with_interval
from kvx.report.tables import markdown

EXPERIMENT, GUARD, REACTIVE = "guard_live", "balanced", "reactive"
ALONE = "guard_live_alone"  # for times, on a machine with nothing else to do
BUDGET = 0.25  # conf/experiment/guard_live.yaml
HEAD = """# What a live guard recovers

{asked}

A figure is reached where its 95% interval says so; times are judged by their values. A dash was not
seen in these responses, and [n/a] stands where too few prompts, or responses that are all alike,
give no interval. More prompts would narrow the intervals; on this CPU 45 take two hours. What falls
short otherwise, and why:

- *False interventions* are counted wherever compression caused no catastrophe, so also where a
  response derails with the full cache too. No guard knows that before it has looked at the full
  cache. `gate` alone has a threshold that 5% of the sound responses of other prompts reach, the
  trained guard's is one that 1% of them reach.
- *KV saving kept* goes where derailing is ([below](#what-it-cost)): these presses at this budget
  were chosen because much derails, and what derails is also decoded longest and twice. A table
  there tells sound responses from the others.
- The guard without a model, `reactive`, is the bar at an equal mean device budget; `ngram`, which
  has none either, prevents most of the others: compare what they prevent, keep and take back
  ([below](#the-trained-guard-against-each-other-one)).

## The study

Made by

    make guard-live N_PROMPTS={n_prompts}

{n_points} points: {presses} at budget {budget:g}, on {datasets}, {n_prompts} prompts
each ({n_all} in all), {model}, at most {max_new_tokens} new tokens, greedy, the whole prompt
compressed; {requests} responses, made with kvx {version} on {hardware}. No prompt, and no text
a prompt is made from, was among those that the hazard model was trained, calibrated or given its
thresholds with, nor in an earlier run of this study, on 45 prompts, after which the trained guard
got the more careful gate and all guards `let_go` (the trained one kept 0.59 of the saving, and
intervened in 8 of 62 sound responses). What is counted:
[live guard](../guard/live.md#what-is-counted). Shares are of what the same press at the same budget
shows without a controller and the full cache does not; 95% intervals from resampled prompts.

`{guard}` is the trained guard, `reactive` the same without a model: it waits for the loop and rolls
back. `ngram` and `entropy_cusum` roll back at a repeated 20-gram, and at a sum of entropies. `gate`
only looks before the first token. `relax_only` is the trained guard that takes no token back.
`random` acts as often as the trained guard, at random tokens. `{full}` keeps everything;
`{static}` is the same press without a controller at the trained guard's mean budget ({statics}),
`{moved}` the reactive guard from where it should come to that mean ({moves}).

## What was prevented

![what controllers prevent, over what they keep](guard_live.png)

{prevented}

## What it cost

Host memory is beside the device's, and counts as no saving. A pause is how long all rows wait for
one intervention.

{price}

Where the trained guard's budget went, by what the same press shows without a controller:

{spent}

## The trained guard against each other one

Prevented: the difference in shares of the same catastrophes. The mean device budgets are those
above, each response with its decoded tokens and prompt entries as weight. Tokens taken back are the
mean per response.

{versus}

## In parts
{parts}
## Time

{times}

The guard's share of a step is that of `python scripts/bench_live_guard.py`, which times both within
one run: the step of a small model on a CPU.
"""
# what was to be reached: name, bound, controller, figure, kind
ASKED = (
    ("excess loops gone", "≥ 0.95", GUARD, "prevented", "looping"),
    ("preventable catastrophes prevented", "≥ 0.60", GUARD, "prevented", ANY),
    ("false interventions", "≤ 0.05", GUARD, "false_interventions", NO_KIND),
    ("the same of sound responses", "≤ 0.05", GUARD, "false_interventions_sound", NO_KIND),
    ("instant onsets prevented", "≥ 0.90", GUARD, "prevented", "instant"),
    ("false gates of the gate alone", "≤ 0.05", "gate", "false_interventions", NO_KIND),
    ("KV saving kept", "≥ 0.80", GUARD, "saving_kept", NO_KIND),
)


@dataclass(frozen=True)
class Alone:
    """What ran alone at batch 1, with and without the guard.

    `slower` is the median ratio of TPOT where the guard did nothing (`n_quiet` of `n` requests),
    `pauses` are those of interventions, in prefills of the same prompt (`prefill_ms`: their
    median).
    """

    n: int
    n_quiet: int
    slower: Estimate
    pauses: pd.Series
    prefill_ms: float


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    """A JSON file of every finished point."""
    found = sorted(path.parent for path in (folder / "points").glob("*/DONE"))
    return [json.loads((point / name).read_text()) for point in found]


def requests_of(folder: Path) -> pd.DataFrame:
    return table_of(folder, "requests")


def table_of(folder: Path, name: str) -> pd.DataFrame:
    """A table of all points, with their press, budget, controller and dataset."""
    frames = [pd.DataFrame()]
    for point in read(folder, "point.json"):
        path = folder / "points" / point["id"] / f"{name}.parquet"
        if path.is_file():
            known = {n: point[n] for n in ("press", "controller", "budget", "dataset")}
            frames.append(pq.read_table(path).to_pandas().assign(**known))
    return pd.concat(frames, ignore_index=True)


def controls(folder: Path, overrides: list[str]) -> None:
    """Run chance, and larger budgets with and without the reactive guard, as `GUARD` behaved."""
    seen = requests_of(folder)
    seen = seen[seen["budget"] == BUDGET]
    own = seen[seen["controller"] == GUARD]
    rate = own["guard_interventions"].sum() / own["guard_decoded_tokens"].sum()
    used, reactive = mean_budgets(own), mean_budgets(seen[seen["controller"] == REACTIVE])
    run = [sys.executable, "-m", "kvx.run", f"experiment={EXPERIMENT}", *overrides]
    chance = ["controller=random", f"controller.rate={rate:.5f}", f"press={','.join(used)}"]
    subprocess.run([*run, *chance], check=True)
    for press, mean in used.items():
        # what the reactive guard adds to its budget is taken off; no budget is run for both
        moved = round(min(BUDGET + mean - reactive[press], mean - 0.01), 2)
        for budget, controller in ((round(mean, 2), "none"), (moved, REACTIVE)):
            if budget > BUDGET:
                larger = [f"press={press}", f"budget.ratio={budget:g}", f"controller={controller}"]
                subprocess.run([*run, *larger], check=True)


def mean_budgets(own: pd.DataFrame) -> dict[str, float]:
    """Press → mean share of the prompt's entries on the device."""
    weight = own["guard_decoded_tokens"] * own["compressed_tokens"]
    sums = (own["guard_mean_budget"] * weight).groupby(own["press"]).sum()
    mean = sums / weight.groupby(own["press"]).sum()
    return {str(press): float(value) for press, value in mean.items()}


def page(folder: Path) -> str:
    points = read(folder, "point.json")
    stats = pq.read_table(folder / "controller_stats.parquet").to_pandas()
    first, alone = points[0], measured_alone(folder.with_name(ALONE))
    config, made = first["config"], first["provenance"]
    guarded = [p for p in points if p["controller"] != "none"]
    larger = [p for p in points if p["budget"] not in (BUDGET, 1.0)]
    return HEAD.format(
        asked=asked(folder, stats, alone),
        n_points=len(points),
        n_prompts=first["manifest"]["n_requests"],
        n_all=requests_of(folder).drop_duplicates(["dataset", "example_id"]).shape[0],
        presses=", ".join(sorted({p["press"] for p in guarded})),
        budget=BUDGET,
        datasets=", ".join(sorted({p["dataset"] for p in points})),
        model=first["model"],
        max_new_tokens=config["decoding"]["max_new_tokens"],
        requests=sum(p["manifest"]["n_requests"] for p in points),
        version=made["versions"]["kvx"],
        hardware=hardware(made["hardware"]),
        guard=GUARD,
        full=FULL,
        static=STATIC,
        statics=named(larger, "none"),
        moved=f"{REACTIVE}{LARGER}",
        moves=named(larger, REACTIVE),
        prevented=prevented_table(stats),
        price=price_table(stats),
        versus=versus_table(stats, GUARD),
        times=times(alone),
        spent=spent(folder),
        parts="".join(parts(stats)),
    )


def named(points: list[dict[str, Any]], controller: str) -> str:
    own = {f"{p['press']} {p['budget']:g}" for p in points if p["controller"] == controller}
    return ", ".join(sorted(own))


def hardware(found: dict[str, Any]) -> str:
    return f"{found.get('gpu') or found['cpu']}, {found['cores']} cores"


def spent(folder: Path) -> str:
    """What `GUARD` kept on the device, for responses that needed it and for those that did not."""
    seen = pooled(load_experiment(folder, folder.parent.parent))
    own = beside(seen[seen["controller"] == GUARD], seen[seen["controller"] == "none"], SAME)
    excess, derailed = (own[f"{name}_there"] == 1 for name in (f"excess_{ANY}", "derailed"))
    groups = {
        "an excess catastrophe": excess,
        "derails, and with the full cache too": derailed & ~excess,
        "sound": ~derailed & ~excess,
    }
    steps = own["guard_decoded_tokens"].astype(float) * own["compressed_tokens"]
    rows = []
    for name, chosen in groups.items():
        mean = (own["guard_mean_budget"] * steps)[chosen].sum() / steps[chosen].sum()
        acted = (own["guard_interventions"][chosen] > 0).sum()
        rows.append(
            [name, int(chosen.sum()), int(acted), f"{steps[chosen].sum() / steps.sum():.2f}",
             f"{mean:.3f}", f"{(1 - mean) / (1 - BUDGET):.2f}"]
        )  # fmt: skip
    header = ["without a controller", "responses", "with an intervention", "share of the decoding",
              "mean device budget", "KV saving kept"]  # fmt: skip
    return markdown(header, rows)


def parts(stats: pd.DataFrame) -> list[str]:
    groups = [g for g in dict.fromkeys(stats["group"]) if g != "all"]
    return [
        f"\n### {group}\n\n{prevented_table(stats, group)}\n\n{price_table(stats, group)}\n"
        for group in groups
    ]


def asked(folder: Path, stats: pd.DataFrame, alone: Alone | None) -> str:
    own = stats[(stats["group"] == "all") & stats["versus"].isna()]
    own = own.assign(kind=own["kind"].fillna(NO_KIND))
    figures = {(r["controller"], r["figure"], r["kind"]): r for r in own.to_dict("records")}
    rows = []
    for name, wanted, controller, figure, kind in ASKED:
        found = figures.get((controller, figure, kind))
        shown = "–" if found is None else with_interval(found, "{:.2f}")
        rows.append([name, wanted, shown, reached(found, wanted)])
    for timed in overhead(folder):
        share = timed["guard_s"] / (timed["step_s"] - timed["guard_s"])
        rows_at_once = f"{timed['rows']} row{'s' if timed['rows'] > 1 else ''} at once"
        name = f"its share of a step where it does nothing, {rows_at_once}"
        rows.append([name, "≤ 0.03", f"{share:.3f}", "yes" if share <= 0.03 else "no"])
    longest = float("nan") if alone is None else alone.pauses.quantile(0.99)
    shown = "–" if pd.isna(longest) else f"{longest:.2f}"
    judged = "not seen" if pd.isna(longest) else "yes" if longest <= 1 else "no"
    rows.append(["p99 pause, in prefills of its prompt", "≤ 1", shown, judged])
    return markdown(["to be reached", "", "measured", "reached"], rows)


def reached(found: dict[str, Any] | None, wanted: str) -> str:
    """Whether a figure is what was `wanted` ("≥ 0.95"), and whether its interval shows it."""
    if found is None or not found["n"]:
        return "not seen"
    sign = 1 if wanted[0] == "≥" else -1
    bound = sign * float(wanted.split()[1])
    worst, best = sorted(sign * found[end] for end in ("ci_low", "ci_high"))
    if worst >= bound:
        return "yes"
    if best < bound:
        return "no"
    told = "reaches" if sign * found["value"] >= bound else "misses"
    return f"its value {told} it, its interval holds both"


def overhead(folder: Path) -> list[dict[str, Any]]:
    """What bench_live_guard.py left in the experiment's folder."""
    path = folder / "overhead.json"
    return json.loads(path.read_text()) if path.is_file() else []


def measured_alone(folder: Path) -> Alone | None:
    alone = table_of(folder, "latency")
    keys = ["example_id", "press", "dataset"]
    if alone.empty:
        return None
    alone = (
        alone[alone["error_type"].isna()]
        .groupby([*keys, "controller"], as_index=False)[["tpot_s", "prefill_s"]]
        .median()
    )
    plain, own = (alone[alone["controller"] == name] for name in ("none", GUARD))
    seen = requests_of(folder)
    calm = seen[(seen["controller"] == GUARD) & (seen["guard_events"] == 0)][keys]
    pairs = own.merge(plain, on=keys, suffixes=("", "_plain"))
    quiet = pairs.merge(calm, on=keys)
    by = Resampler(max(1, len(quiet)), 2000, 0.95, 0)
    ratio = (quiet["tpot_s"] / quiet["tpot_s_plain"]).to_numpy()
    slower = by.quantile(ratio, range(len(ratio)), 0.5)
    events = table_of(folder, "events")
    done = events[events["action"].isin(INTERVENTIONS) & (events["controller"] == GUARD)]
    waits = done.merge(plain[[*keys, "prefill_s"]], on=keys)
    pauses = waits["milliseconds"] / (1000 * waits["prefill_s"])
    return Alone(len(pairs), len(quiet), slower, pauses, 1000 * plain["prefill_s"].median())


def times(alone: Alone | None) -> str:
    if alone is None:
        return "Nothing was measured alone."
    return (
        f"Alone at batch 1, {alone.n} requests with and without the guard. Where it did nothing "
        f"({alone.n_quiet}), a token took {str(alone.slower).replace('[nan, nan]', '[n/a]')} times "
        "as long (median): the gate's look "
        "at the full cache is one more step per response, which is much for an answer of a dozen "
        f"tokens. Of {len(alone.pauses)} interventions in prompts that were measured alone, "
        f"{(alone.pauses <= 1).mean():.2f} took no longer than one prefill of the same prompt "
        f"(median {alone.pauses.median():.2f}, p99 {alone.pauses.quantile(0.99):.2f} prefills; the "
        f"median prefill is {alone.prefill_ms:.0f} ms). What is kept of a long answer passes the "
        "model again, which can take longer than a short prompt did."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("controls", "page"))
    parser.add_argument("--experiment", type=Path, default=Path("outputs/runs") / EXPERIMENT)
    parser.add_argument("--out", type=Path, default=Path("docs/results/guard_live.md"))
    parser.add_argument("overrides", nargs="*", help="of kvx.run, as in the first half")
    options = parser.parse_intermixed_args()
    if options.step == "controls":
        controls(options.experiment, options.overrides)
    else:
        options.out.write_text(page(options.experiment))
        picture = options.experiment / "plots" / tradeoff.NAME
        shutil.copyfile(picture, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
