"""Write docs/results/guard_offline.md from a finished guard study, and its plot beside it.

    make guard-study && python scripts/guard_offline.py

With `--onset FOLDER`, the same study trained and simulated with train.target=onset, the page also
compares what the two targets are worth to a controller.

Nothing is computed here: the tables are those that kvx.train and kvx.simulate wrote, under a
summary of them, what the study consisted of and the machine it ran on.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Key = tuple[str, str, str]  # of a figure: analysis, name, metric
LATE, HEADLINE, FULL, AUROC = "before_detection", "headline", "full", "auroc"
HEAD = """# What a guard could have known: the offline study

{summary}

## The study

Made by

    make guard-study N_PROMPTS={n_prompts}
{commands}

{n_points} points ({presses} × budgets {budgets}) on {datasets}, {n_prompts} prompts each, {model},
at most {max_new_tokens} new tokens, greedy, the whole prompt compressed
(`prompt.query_aware=true`); {requests} responses, made with kvx {version} on {hardware}. What the
words mean: [training](../guard/training.md), [controllers](../guard/controllers.md).

An onset is the first token of the first repetition: nothing of the loop precedes it. The original
KVGuard's onset, the second occurrence of a 20-token window, can leave repeated tokens before it to
be counted as forecast, so its figures are no yardstick for these.
"""
# what was to be reached: figure, least or most, (analysis, name, metric) before the onset, and
# before the loop can be detected
ONSET = """    cp -r {experiment} {onset}
    python -m kvx.train experiment=guard_study experiment_name={name} train.target=onset \\
        train.ablations=[] train.horizons=[] train.leave_out=[]
    python -m kvx.simulate experiment=guard_study experiment_name={name}
    python scripts/guard_offline.py --onset {onset}"""
TARGETS = """## What a controller gets from either target

Replays of the same responses (below: all controllers, with the model that ships). A model of the
onset alarms earlier or not at all; one of the detection alarms in loops that have begun, and its
alarm goes back to before where what is being said again began. Both go back that far here.

"""
ASKED: tuple[tuple[str, str, Key, Key | None], ...] = (
    (
        "AUROC, logits alone", "≥ 0.97",
        ("features", "logit_only", "auroc"), (LATE, "logit_only", "auroc"),
    ),
    (
        "AUROC, a press that was never seen", "≥ 0.93",
        ("leave_one_press_out", "all", "auroc"), (f"{LATE}_without_press", "all", "auroc"),
    ),
    (
        "recall of responses", "≥ 0.85",
        (HEADLINE, FULL, "balanced.recall"), (LATE, FULL, "balanced.recall"),
    ),
    (
        "at false positives", "≤ 0.05",
        (HEADLINE, FULL, "balanced.false_positive_rate"),
        (LATE, FULL, "balanced.false_positive_rate"),
    ),
    (
        "median lead in tokens, onset ≥ 64", "≥ 64",
        (HEADLINE, FULL, "balanced.lead_median_roomy"), (LATE, FULL, "balanced.lead_median_roomy"),
    ),
    ("calibration error", "≤ 0.02", (HEADLINE, FULL, "ece"), (LATE, FULL, "ece")),
    (
        "AUROC, instant onsets by the probe", "≥ 0.95",
        ("early", "instant: probe alone", AUROC), None,
    ),
    (
        "AUROC, any onset by probe and first 8 tokens", "≥ 0.85",
        ("early", "any onset: probe and first 8 tokens", AUROC), None,
    ),
)  # fmt: skip
WHY = """Prompts untouched by fitting, 95% intervals. The right column counts the tokens up to the
one with which the loop detector first reports the loop, by models trained for that. There the best
detector without training, n-gram repetition, has an AUROC of {ngram} and a recall of
{ngram_recall} at {ngram_rate} false positives. Where this falls short, and what was measured:

- *Before the onset there is little to see.* Press, budget and position alone have an AUROC of
  {metadata}, all features {full}; of the first four tokens {first}, of
  tokens 128 to 255 {last}. Trained for the report, which comes
  {delay} tokens after the onset (median), the same features have {late}.
- *The model that ships is trained for the onset* (`train.target=onset`): live it prevents more than
  one trained for the report ([controllers](../guard/controllers.md#the-controllers)). It alarms
  {early_lead} tokens before the report (median, onset ≥ 64), with a recall of
  {early_recall} at {early_rate} false positives.
- *The gate before the first token* ({gate_aim}) stops {gate_recall} of the
  excess catastrophes of untouched prompts at {gate_rate} false gates.
- *Replayed budgets*: the controllers with a model relax to half a cache (`safe_budget=0.5`),
  `reactive` to all of it, and a replay takes both for enough. Live, what derails at half gets the
  full cache, so their mean budgets here are too low to be compared.
- *Unseen presses*: AUROC before the onset from {worst_press} to {best_press};
  {most} of the catastrophes are of one press.
- *Instant onsets*: {instant} of {events} (at or before token 4) in these prompts, compressed with
  their question: too few to judge the probe on, as its interval says.

What a prediction costs: [training](../guard/training.md#what-it-costs)."""


def read(experiment: Path, name: str) -> list[dict[str, Any]]:
    """A JSON file of every finished point."""
    folders = sorted(path.parent for path in (experiment / "points").glob("*/DONE"))
    return [json.loads((folder / name).read_text()) for folder in folders]


def names(points: list[dict[str, Any]], field: str) -> str:
    return ", ".join(sorted({str(point[field]) for point in points}))


def nested(text: str) -> str:
    """A page as a part of another: its headings one level down."""
    return re.sub(r"^(#+ )", r"#\1", text, flags=re.MULTILINE).strip()


def summary(experiment: Path) -> str:
    """What was asked beside what was reached, and why it falls short."""
    rows = pq.read_table(experiment / "guard" / "evaluation.parquet").to_pylist()
    found = {(r["analysis"], r["name"], r["metric"]): r for r in rows}

    def figure(key: Key | None) -> str:
        if key is None:
            return "–"
        row, digits = found[key], 0 if "lead" in key[2] or "delay" in key[2] else 3
        low, high = (f"{row[end]:.{digits}f}" for end in ("ci_low", "ci_high"))
        return f"{row['value']:.{digits}f} [{low}, {high}]"

    lines = ["| figure | asked | before the onset | before the loop can be detected |"]
    lines += ["| --- | --- | --- | --- |"]
    lines += [f"| {w} | {a} | {figure(one)} | {figure(two)} |" for w, a, one, two in ASKED]
    presses = [
        r
        for r in rows
        if (r["analysis"], r["metric"]) == ("leave_one_press_out", AUROC) and r["name"] != "all"
    ]
    presses.sort(key=lambda r: r["value"])
    events = {r["name"]: found["by_press", r["name"], "trace_auroc"]["n_positive"] for r in presses}
    most = max(events, key=lambda name: events[name])
    by_onset = f"{FULL}, trained for the onset"
    why = WHY.format(
        ngram=figure((LATE, "n-gram repetition", AUROC)),
        ngram_recall=figure((LATE, "n-gram repetition", "balanced.recall")),
        ngram_rate=figure((LATE, "n-gram repetition", "balanced.false_positive_rate")),
        metadata=figure(("features", "metadata_only", AUROC)),
        full=figure((HEADLINE, FULL, AUROC)),
        late=figure((LATE, FULL, AUROC)),
        delay=figure((LATE, "delay", "delay_median")),
        early_lead=figure((LATE, by_onset, "balanced.lead_median_roomy")),
        early_recall=figure((LATE, by_onset, "balanced.recall")),
        early_rate=figure((LATE, by_onset, "balanced.false_positive_rate")),
        gate_aim="balanced, chosen for at most 5% false gates",
        gate_recall=figure(("gate", "balanced", "recall")),
        gate_rate=figure(("gate", "balanced", "false_gate_rate")),
        first=figure((HEADLINE, FULL, "auroc_at_0-3")),
        last=figure((HEADLINE, FULL, "auroc_at_128-255")),
        worst_press=f"{presses[0]['value']:.3f} ({presses[0]['name']})",
        best_press=f"{presses[-1]['value']:.3f} ({presses[-1]['name']})",
        most=f"{events[most]} ({most}) of {sum(events.values())}",
        instant=found["early", "instant: probe alone", AUROC]["n_positive"],
        events=found["early", "any onset: probe alone", AUROC]["n_positive"],
    )
    return "\n".join(lines) + "\n\n" + why


def targets(detection: Path, onset: Path) -> str:
    """The controllers with a model under either target, beside the reactive one."""
    columns = (
        ("prevented at best", "prevented", 2), ("of loops", "prevented_of_loops", 2),
        ("loops seen coming", "forecast", 2), ("false triggers", "false_trigger_rate", 2),
        ("mean KV budget", "mean_budget", 3),
        ("tokens dropped per 1,000", "dropped_per_1000_tokens", 0),
    )  # fmt: skip
    header = ["controller", "trained for", *(title for title, _, _ in columns)]
    lines = ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header))]
    for target, folder in (("–", detection), ("onset", onset), ("detection", detection)):
        rows = pq.read_table(folder / "guard" / "simulation.parquet").to_pylist()
        for row in rows:
            if (row["role"], row["group"]) != ("controller", "all"):
                continue
            if (row["family"] != "hazard") if target != "–" else (row["controller"] != "reactive"):
                continue
            cells = [row["controller"], target]
            for _, name, digits in columns:
                value, low, high = (row[name + end] for end in ("", "_ci_low", "_ci_high"))
                cells.append(f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]")
            lines.append("| " + " | ".join(cells) + " |")
    return TARGETS + "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="docs/results/guard_offline.md and its plot")
    parser.add_argument("--onset", type=Path, help="the study with train.target=onset")
    parser.add_argument("--experiment", type=Path, default=Path("outputs/runs/guard_study"))
    arguments = parser.parse_args()
    experiment: Path = arguments.experiment
    onset: Path | None = arguments.onset
    points, done = read(experiment, "point.json"), read(experiment, "DONE")
    pages = [experiment / "guard" / name for name in ("train.md", "simulate.md")]
    if missing := [str(page) for page in pages if not page.is_file()]:
        sys.exit(f"guard_offline: {', '.join(missing)}: not there; make guard-study")
    made = points[0]["provenance"]
    hardware = made["hardware"]
    head = HEAD.format(
        summary=summary(experiment),
        commands="    python scripts/guard_offline.py"
        if onset is None
        else ONSET.format(experiment=experiment, onset=onset, name=onset.name),
        n_prompts=", ".join(sorted({str(d["requests"]) for d in done})),
        n_points=len(points),
        presses=names(points, "press"),
        budgets=names(points, "budget_label"),
        datasets=names(points, "dataset"),
        model=points[0]["model"],
        max_new_tokens=points[0]["config"]["decoding"]["max_new_tokens"],
        requests=sum(d["requests"] for d in done),
        version=made["versions"]["kvx"],
        hardware=hardware.get("gpu") or f"{hardware['cpu']}, {hardware['cores']} cores",
    )
    trained, simulated = (nested(page.read_text()) for page in pages)
    parts = [head, trained, simulated]
    if onset is not None:
        parts.insert(2, targets(experiment, onset))
    text = "\n\n".join(parts) + "\n"
    docs = Path(__file__).parent.parent / "docs"
    picture = docs / "images" / "guard_pareto.png"
    shutil.copyfile(experiment / "guard" / "plots" / "pareto.png", picture)
    page = docs / "results" / "guard_offline.md"
    page.write_text(text.replace("(plots/pareto.png)", "(../images/guard_pareto.png)"))
    print(f"guard_offline: {len(points)} points → {page}")


if __name__ == "__main__":
    main()
