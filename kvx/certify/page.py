"""A certificate in words."""

from collections.abc import Mapping
from pathlib import Path

from kvx.certify.certificate import Certificate, DeviceUse, Group, Tested, Verdict, whole
from kvx.config.numbers import plural
from kvx.report.tables import markdown, number
from kvx.report.template import render
from kvx.report.wording import percent
from kvx.stats.risk_control import EXACT, least_prompts, prompts_for_power


def summary(made: Certificate) -> str:
    """What was certified, in a few words."""
    if made.budget is None:
        return "no certificate below the full cache"
    text = (
        f"budget {made.budget.budget} certified (loss at most {percent(made.alpha)}, confidence "
        f"{_confidence(made)})"
    )
    if (used := made.device_use) is None:
        return text
    return f"{text}; with controller {made.controller['label']} {_kept(used)}"


def conditions(made: Certificate) -> str:
    """The conditions under which the answers came about."""
    decoding = made.setup["decoding"]
    sees = "context and question" if made.setup["query_aware"] else "the context only"
    how = f"temperature {decoding['temperature']:g}" if decoding["temperature"] else "greedy"
    if until := decoding.get("until"):
        how += f", up to the first of {', '.join(map(repr, until))}"
    return f"the press sees {sees}; at most {plural(decoding['max_new_tokens'], 'token')}, {how}"


def write(made: Certificate, file: str) -> str:
    """The page; `file` is the name of the certificate's JSON."""
    guard = None if made.controller["label"] == "none" else made.controller["label"]
    left_out = sum(g.n_left_out for g in made.groups)
    return render(
        Path(__file__).with_name("certificate.md.j2"),
        made=made,
        best=made.budget,
        guard=guard,
        file=file,
        bins=not whole(made.groups[0]),
        alpha=percent(made.alpha),
        delta=percent(made.delta),
        confidence=_confidence(made),
        kept=made.device_use and _kept(made.device_use),
        n=f"{sum(g.n for g in made.groups):,}",
        left_out=left_out and plural(left_out, "example"),
        shared=made.average == "examples" or made.test != EXACT.name,
        power="" if made.net else power(made.alpha, made.delta_per_group),
        tables="\n\n".join(map(_table, made.groups)),
        on_device=any(t.mean_budget is not None for g in made.groups for t in g.tests),
        press=_fields({"name": made.press["name"], **(made.press["method"] or {})}),
        controller=_fields(made.controller) if guard else "none",
        conditions=conditions(made),
    )


def _confidence(made: Certificate) -> str:
    return percent(round(1 - made.delta, 12))


def power(alpha: float, delta: float) -> str:
    """How many prompts it takes to be certified as a rule, and not only at best."""
    least, low, high = least_prompts(False, alpha, delta), alpha / 5, alpha / 2
    enough = [prompts_for_power(risk, alpha, delta, 0.8) for risk in (low, high)]
    return (
        f"How many prompts: {least} pass if none loses anything, which has a chance of "
        f"{(1 - low) ** least:.0%} where the true loss is {percent(low)}. For a chance of 80% it "
        f"takes {enough[0]:,} there, {enough[1]:,} where it is {percent(high)} (losses of 0 or 1, "
        "one per text)."
    )


def _kept(used: DeviceUse) -> str:
    """What was on the device, over all length bins."""
    value, count = f"{used.lowest:.3f}", plural(used.n_responses, "response")
    if used.highest != used.lowest:
        value += f" to {used.highest:.3f}, by length bin,"
    return f"{value} was on the device on average ({count})"


def _table(group: Group) -> str:
    examples = ["examples"] if any(t.n_examples is not None for t in group.tests) else []
    header = ["budget", "prompts", *examples, "lost in all", "mean loss", "p", "verdict"]
    rows = []
    for t in group.tests:
        verdict = f"**{t.verdict}**" if t.verdict is Verdict.CERTIFIED else str(t.verdict)
        rows.append([
            t.budget, f"{t.n:,}", *_lost(t), number(t.mean_loss, "{:.3f}"),
            number(t.p, "{:.2g}"), f"{verdict}: {t.reason}" if t.reason else verdict,
        ])  # fmt: skip
    if any(t.mean_budget is not None for t in group.tests):
        header.insert(1, "on the device (responses)")
        for row, t in zip(rows, group.tests, strict=True):
            row.insert(1, number(t.mean_budget, f"{{:.3f}} ({t.n_responses or 0:,})"))
    table = markdown(header, rows)
    if whole(group):
        return table
    return f"Contexts of {group.low_tokens}–{group.high_tokens} tokens:\n\n{table}"


def _lost(row: Tested) -> tuple[str, ...]:
    """The losses in all, beside the number of examples where the mean is over them."""
    lost = number(row.total_loss, "{:g}")
    return (lost,) if row.n_examples is None else (f"{row.n_examples:,}", lost)


def _fields(values: Mapping[str, object]) -> str:
    return ", ".join(f"{k}={v}" for k, v in values.items() if k != "label")
