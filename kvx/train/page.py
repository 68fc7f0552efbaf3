"""train.md: the figures of kvx.train as tables."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kvx.config.train import LeaveOut
from kvx.learning.fitting import OPERATING_POINTS
from kvx.report.tables import markdown, number
from kvx.report.template import render
from kvx.scoring.loops import INSTANT
from kvx.train import detection
from kvx.train.analyses import HEADLINE
from kvx.train.early import FIRST
from kvx.train.judge import Results
from kvx.train.prefill_gate import GATE

Row = dict[str, Any]
Figures = Mapping[str, Mapping[str, Row]]  # name → metric → row

_FEW = {
    "AUROC": "auroc", "AUPRC": "auprc", "lift": "auprc_lift", "ECE": "ece",
    "recall at ≤ 5%": "balanced.recall", "false positives": "balanced.false_positive_rate",
    "trace AUROC": "trace_auroc",
}  # fmt: skip
_LATE = {
    **_FEW,
    "median lead": "balanced.lead_median",
    "median lead, onset ≥ 64": "balanced.lead_median_roomy",
    "false alarms / 1,000 tokens": "balanced.false_alarms_per_1000_tokens",
}
_ALARMS = {
    "recall": "recall", "false positives": "false_positive_rate",
    "lead ≥ 32": "recall_with_lead_32", "lead ≥ 64": "recall_with_lead_64",
    "median lead": "lead_median", "quartiles": "lead_q25",
    "median lead, onset ≥ 64": "lead_median_roomy",
    "false alarms / 1,000 tokens": "false_alarms_per_1000_tokens",
}  # fmt: skip
_GATES = {
    "false gates": "false_gate_rate",
    "excess catastrophes stopped": "recall",
    "excess loops stopped": "recall_of_loops",
    f"loops from token {INSTANT} or before": "recall_of_instant",
}
_SECTIONS = (
    ("features", "Feature sets", "feature set"),
    ("baseline", "Detectors that need no training", "detector"),
    ("horizon", "Horizons", "H"),
    *((f"leave_one_{g}_out", f"Leave one {g} out", g) for g in ("press", "model", "dataset")),
    *((f"by_{g}", f"The same model by {g}", g) for g in ("dataset", "press", "budget", "model")),
    ("compare", "Another model, judged here", "model"),
)


def document(experiment: str, card: Mapping[str, Any], results: Results) -> str:
    """The whole of train.md."""
    found: dict[str, dict[str, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in results.rows:
        found[row["analysis"]][row["name"]][row["metric"]] = row
    features = card["training"]["features"]
    own, late = found[HEADLINE][features], dict(found[detection.ANALYSIS])
    delay = late.pop(detection.DELAY, {})
    at = {m.removeprefix("auroc_at_"): r for m, r in own.items() if m.startswith("auroc_at_")}
    early = {name: metrics["auroc"] for name, metrics in found["early"].items()}
    groups = [(g.name, found[detection.without(g)]) for g in LeaveOut]
    return render(
        Path(__file__).with_name("train.md.j2"),
        name=experiment,
        card=card,
        instant=INSTANT,
        first=FIRST,
        skipped=results.skipped,
        headline=_table("feature set", found[HEADLINE]),
        inflated=_figure(own["auroc_with_tokens_after_onset"]),
        alarms=_alarms(own),
        early=_counted(("which catastrophe: by what", "AUROC", "catastrophes", "traces"), early),
        gates=found[GATE]
        and markdown(
            ["gate", *_GATES],
            [
                [
                    _point(name),
                    *(f"{_figure(row := rows[m])} of {row['n']}" for m in _GATES.values()),
                ]
                for name, rows in found[GATE].items()
            ],
        ),
        positions=at and _counted(("tokens", "AUROC", "positive tokens", "tokens in all"), at),
        late=late and _table("by what", late, _LATE),
        onset_name=detection.onset_name(features),
        delay={m.removeprefix("delay_"): number(r["value"], "{:.0f}") for m, r in delay.items()},
        late_without=[(name, _table(name, rows, _LATE)) for name, rows in groups if rows],
        sections=[(title, _table(label, found[a])) for a, title, label in _SECTIONS if found[a]],
    )


def in_short(results: Results) -> str:
    """One line about the model."""
    found = {(r["analysis"], r["metric"]): r for r in results.rows}
    auroc, recall = (found[HEADLINE, m] for m in ("auroc", "balanced.recall"))
    return (
        f"AUROC before the onset {_figure(auroc)}, recall {_figure(recall)} at ≤ 5% false positives"
    )


def _alarms(own: Mapping[str, Row]) -> str:
    rows = []
    for name in OPERATING_POINTS:
        cells = {title: _figure(own[f"{name}.{metric}"]) for title, metric in _ALARMS.items()}
        low, high = (own[f"{name}.lead_{q}"]["value"] for q in ("q25", "q75"))
        cells["quartiles"] = "–" if low is None else f"{low:.0f} to {high:.0f}"
        rows.append([_point(name), *cells.values()])
    return markdown(["operating point", *_ALARMS], rows)


def _point(name: str) -> str:
    return f"{name} (≤ {OPERATING_POINTS[name]:.0%})"


def _counted(header: Sequence[str], rows: Mapping[str, Row]) -> str:
    """One figure per name, with the positives and all that it is of."""
    return markdown(
        header, [[name, _figure(r), r["n_positive"], r["n"]] for name, r in rows.items()]
    )


def _table(label: str, figures: Figures, metrics: Mapping[str, str] = _FEW) -> str:
    rows = []
    for name, found in figures.items():
        of = found["trace_auroc"]
        cells = [_figure(found.get(metric)) for metric in metrics.values()]
        rows.append([name, *cells, f"{of['n_positive']} / {of['n']}"])
    return markdown([label, *metrics, "events / traces"], rows)


def _figure(row: Row | None) -> str:
    """`0.82 [0.70, 0.91]`; leads in whole tokens."""
    if row is None or row["value"] is None:
        return "–"
    form = "{:.0f}" if ".lead_" in row["metric"] else "{:.3f}"
    low, high = row["ci_low"], row["ci_high"]
    between = "" if low is None else f" [{number(low, form)}, {number(high, form)}]"
    return form.format(row["value"]) + between
