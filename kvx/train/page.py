"""train.md: the figures of kvx.train as tables."""

from collections.abc import Iterable, Sequence
from typing import Any

from kvx.config.train import LeaveOut, Target
from kvx.learning.fitting import OPERATING_POINTS
from kvx.scoring.loops import INSTANT
from kvx.train import detection
from kvx.train.analyses import HEADLINE
from kvx.train.early import FIRST
from kvx.train.judge import Results
from kvx.train.prefill_gate import GATE

Row = dict[str, Any]
Lookup = dict[tuple[str, str, str], Row]

_FEW = (
    ("AUROC", "auroc"), ("AUPRC", "auprc"), ("lift", "auprc_lift"), ("ECE", "ece"),
    ("recall at ≤ 5%", "balanced.recall"), ("false positives", "balanced.false_positive_rate"),
    ("trace AUROC", "trace_auroc"),
)  # fmt: skip
_ALARMS = (
    ("recall", "recall"), ("false positives", "false_positive_rate"),
    ("lead ≥ 32", "recall_with_lead_32"), ("lead ≥ 64", "recall_with_lead_64"),
    ("median lead", "lead_median"),
    ("quartiles", "lead_q25"), ("median lead, onset ≥ 64", "lead_median_roomy"),
    ("false alarms / 1,000 tokens", "false_alarms_per_1000_tokens"),
)  # fmt: skip
_LATE = (
    *_FEW, ("median lead", "balanced.lead_median"),
    ("median lead, onset ≥ 64", "balanced.lead_median_roomy"),
    ("false alarms / 1,000 tokens", "balanced.false_alarms_per_1000_tokens"),
)  # fmt: skip
_WRITTEN = {
    Target.onset: "The model that is written, and that controllers use, is trained for the onset.",
    Target.detection: (
        "The model that is written, and that controllers use, is trained for the token with which "
        "the loop detector first reports a loop (`train.target=detection`): its figures are those "
        "of *Before the loop can be detected*. The others are of models trained for the onset."
    ),
}
_SECTIONS = (
    ("features", "Feature sets", "feature set"),
    ("baseline", "Detectors that need no training", "detector"),
    ("horizon", "Horizons", "H"),
    ("leave_one_press_out", "Leave one press out", "press"),
    ("leave_one_model_out", "Leave one model out", "model"),
    ("leave_one_dataset_out", "Leave one dataset out", "dataset"),
    ("by_dataset", "The same model by dataset", "dataset"),
    ("by_press", "The same model by press", "press"),
    ("by_budget", "The same model by budget", "budget"),
    ("by_model", "The same model by model", "model"),
    ("compare", "Another model, judged here", "model"),
)


def document(experiment: str, card: dict[str, Any], results: Results) -> str:
    """The whole of train.md."""
    found: Lookup = {(r["analysis"], r["name"], r["metric"]): r for r in results.rows}
    own = card["training"]["features"]
    parts = [
        f"# Hazard model of {experiment}\n\n" + _introduction(card),
        "## Before the onset, untouched prompts\n\n"
        + _table([HEADLINE], "feature set", _names(results, [HEADLINE]), _FEW, found),
        _inflated(found, own),
        "## Alarms\n\nThresholds come from the threshold split of each fold.\n\n"
        + _alarms(found, own),
        _early(results, found),
        _gate(results, found),
        _positions(results, own),
        _before_detection(results, found, card),
    ]
    for analysis, title, label in _SECTIONS:
        names = _names(results, [analysis])
        if names:
            parts.append(f"## {title}\n\n" + _table([analysis], label, names, _FEW, found))
    if results.skipped:
        parts.append("## Not done\n\n" + "\n".join(f"- {reason}" for reason in results.skipped))
    return "\n\n".join(part for part in parts if part) + "\n"


def in_short(results: Results) -> str:
    """One line about the model."""
    found = {(r["analysis"], r["metric"]): r for r in results.rows}
    auroc, recall = (found[HEADLINE, m] for m in ("auroc", "balanced.recall"))
    return (
        f"AUROC before the onset {_figure(auroc)}, recall {_figure(recall)} at ≤ 5% false positives"
    )


def _introduction(card: dict[str, Any]) -> str:
    data, training = card["data"], card["training"]
    share = f"{training['confidence']:.0%}"
    return (
        f"{data['n_traces']} responses of {data['n_prompts']} prompts, {data['n_tokens']} tokens: "
        f"{data['n_event']} with a catastrophe whose onset is known ({data['n_instant']} of them "
        f"at or before token {INSTANT}), {data['n_negative']} sound, {data['n_left_out']} left "
        f"out (no onset, or shared with the full cache). Models: {', '.join(data['models'])}. "
        f"Datasets: {', '.join(data['datasets'])}. Presses: {', '.join(data['presses'])}.\n\n"
        f"A token is positive if a catastrophe starts within the next {card['horizon_tokens']} "
        "tokens. Tokens from the onset on count nowhere, and full-cache responses are learnt from "
        f"but not judged. Figures: {training['folds']} outer folds by prompt; the others are split "
        "into train, validation (early stopping, calibration) and threshold. Brackets: "
        f"{share} intervals, {training['n_boot']} resamples of prompts. Labels: "
        f"{training['labels']}.\n\n{_WRITTEN[Target[training['target']]]}"
    )


def _inflated(found: Lookup, own: str) -> str:
    row = found[HEADLINE, own, "auroc_with_tokens_after_onset"]
    return (
        f"Counted over all tokens, those after the onset as positives, AUROC would be "
        f"{_figure(row)}: that is no forecast."
    )


def _alarms(found: Lookup, own: str) -> str:
    header = ["operating point", *(title for title, _ in _ALARMS)]
    rows = []
    for name, rate in OPERATING_POINTS.items():
        cells = []
        for _, metric in _ALARMS:
            row = found[HEADLINE, own, f"{name}.{metric}"]
            if metric == "lead_q25":
                low, high = row["value"], found[HEADLINE, own, f"{name}.lead_q75"]["value"]
                cells.append("–" if low is None else f"{low:.0f} to {high:.0f}")
            else:
                cells.append(_figure(row, 0 if metric.startswith("lead") else 3))
        rows.append([f"{name} (≤ {rate:.0%})", *cells])
    return _markdown(header, rows)


def _early(results: Results, found: Lookup) -> str:
    names = _names(results, ["early"])
    rows = [
        [name, _figure(row := found["early", name, "auroc"]), str(row["n_positive"]), str(row["n"])]
        for name in names
    ]
    table = _markdown(["which catastrophe: by what", "AUROC", "catastrophes", "traces"], rows)
    return (
        "## At and before the first tokens\n\nOne score per compressed response. Instant: the "
        f"onset is at or before token {INSTANT}, told from all other responses. Any onset, and "
        f"onset after the first {FIRST} tokens: told from sound responses. What uses the first "
        f"{FIRST} tokens sees a catastrophe that has already started in the instant ones and in "
        "some of any onset; only among the onsets after them is it a forecast."
        f"\n\n{table}"
    )


def _gate(results: Results, found: Lookup) -> str:
    names = _names(results, [GATE])
    if not names:
        return ""
    columns = {
        "false gates": "false_gate_rate", "excess catastrophes stopped": "recall",
        "excess loops stopped": "recall_of_loops",
        f"loops from token {INSTANT} or before": "recall_of_instant",
    }  # fmt: skip
    rows = [
        [
            f"{name} (≤ {OPERATING_POINTS[name]:.0%})",
            *(f"{_figure(row := found[GATE, name, m])} of {row['n']}" for m in columns.values()),
        ]
        for name in names
    ]
    return (
        "## The gate before the first token\n\nThe divergence of the full and the compressed cache "
        "where the first token is chosen (the probe), from which a sequence gets more of its "
        "prompt's entries at once. Gates come from all prompts of the other folds: at most so "
        "many of its compressed responses without an excess catastrophe reach them. Shares of "
        "responses to untouched prompts.\n\n" + _markdown(["gate", *columns], rows)
    )


def _before_detection(results: Results, found: Lookup, card: dict[str, Any]) -> str:
    """The second view, and its leave-one-out tables."""
    names = [n for n in _names(results, [detection.ANALYSIS]) if n != detection.DELAY]
    if not names:
        return ""
    delay = {
        name: found[detection.ANALYSIS, detection.DELAY, f"delay_{name}"]["value"]
        for name in detection.QUARTILES
    }
    own = card["training"]["features"]
    text = (
        "## Before the loop can be detected\n\nAt its onset nothing of a loop has been repeated "
        "yet; a guard that rolls back need only be earlier than the loop detector. This second "
        "view counts the tokens up to the one with which the detector (`kvx.guard.loop_follower`) "
        f"first reports the loop: {delay['median']:.0f} tokens after the onset (median; quartiles "
        f"{delay['q25']:.0f} to {delay['q75']:.0f}). That token and those after it count nowhere. "
        f"Positive: the report comes within {card['horizon_tokens']} tokens. Leads are to the "
        "report. Folds, splits and responses are those above, instant onsets included; feature "
        "sets are models fitted, stopped, calibrated and given thresholds for this view, but "
        f"`{detection.onset_name(own)}`, the model of the headline with its own thresholds. Much "
        "of what is seen here is repetition that has begun: this is early detection, and the "
        "n-gram detector is the one to beat.\n\n"
    )
    text += _table([detection.ANALYSIS], "by what", names, _LATE, found)
    for group in LeaveOut:
        analysis = detection.without(group)
        if members := _names(results, [analysis]):
            text += f"\n\nBy models that saw nothing of the {group.name}:\n\n"
            text += _table([analysis], group.name, members, _LATE, found)
    return text


def _positions(results: Results, own: str) -> str:
    rows = [
        [r["metric"].removeprefix("auroc_at_"), _figure(r), str(r["n_positive"]), str(r["n"])]
        for r in results.rows
        if (r["analysis"], r["name"]) == (HEADLINE, own) and r["metric"].startswith("auroc_at_")
    ]
    header = ["tokens", "AUROC", "positive tokens", "tokens in all"]
    return "## AUROC by position\n\n" + _markdown(header, rows) if rows else ""


def _names(results: Results, analyses: Iterable[str]) -> list[str]:
    wanted = set(analyses)
    return list(dict.fromkeys(r["name"] for r in results.rows if r["analysis"] in wanted))


def _table(
    analyses: Sequence[str], label: str, names: Sequence[str],
    metrics: Sequence[tuple[str, str]], found: Lookup,
) -> str:  # fmt: skip
    header = [label, *(title for title, _ in metrics), "events / traces"]
    rows = []
    for analysis in analyses:
        for name in names:
            cells = [
                _figure(found.get((analysis, name, metric)), 0 if "lead_median" in metric else 3)
                for _, metric in metrics
            ]
            of = found[analysis, name, "trace_auroc"]
            rows.append([name, *cells, f"{of['n_positive']} / {of['n']}"])
    return _markdown(header, rows)


def _figure(row: Row | None, digits: int = 3) -> str:
    if row is None or row["value"] is None:
        return "–"
    low, high = row["ci_low"], row["ci_high"]
    between = "" if low is None else f" [{_number(low, digits)}, {_number(high, digits)}]"
    return _number(row["value"], digits) + between


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
