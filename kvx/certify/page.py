"""A certificate in words."""

from kvx.certify.certificate import Certificate, DeviceUse, Group, Tested, Verdict, whole
from kvx.config.certify import Loss
from kvx.config.numbers import plural
from kvx.report.tables import markdown, number
from kvx.report.wording import percent

PAGE = """# {title}: {press}{controller} on {dataset}

**{statement}**

{losses}

{tables}

Budgets were tested from the largest downwards ({test}, {level}), up to the first that is not
certified. p: how likely so small a loss is if the true one is above {alpha}.{device}

## Of what

| | |
|---|---|
| model | {model} |
| press | `{method}` |
| controller | {guard} |
| data | {data} |
| prompt and answer | {setup} |
| made by | kvx {kvx}, inputs {inputs} |
{promise}"""
PROMISE = """
## What it promises, and what not

- It speaks of prompts like these: exchangeable with the {n} that were run, as if drawn from the
  same source, in the same mix of lengths. Of another task, template, length, question or longer
  answers it says nothing.
- {alpha} is a mean over prompts. Single prompts may lose everything.
- The comparison is with the full cache of the same model on the same prompt, not with the truth:
  what the full cache gets wrong is no loss, and what compression gains makes up for none.
- Of 100 certificates made like this, up to {wrong} may be wrong.{choice}
- Press, controller, budgets and prompts must have been chosen before these answers were seen:
  pilots need prompts of their own.

To serve it:

    python -m kvx.serve … budget=certified certificate={file} decoding.max_new_tokens={longest}

Each answer then says whether it was made under this promise (`"kvx": {{"certified": …}}`); requests
for another press or budget{or_controller}, or for longer or shorter answers, are outside it.
"""
TITLE, NONE_TITLE = "Certificate", "No certificate below the full cache"
RISK = {
    Loss.failure.name: "the share of prompts without a usable answer (none, or an empty, refused, "
    "cut or malformed one) where the full cache gave one",
    Loss.catastrophe.name: "the share of prompts whose answer derails (loops, does not end, loses "
    "its instruction) where the full cache's does not",
    Loss.score.name: "the mean of how far the score ({metric}) falls below the full cache's, gains "
    "counted as 0",
}


def summary(made: Certificate) -> str:
    """What was certified, in a few words."""
    if made.budget is None:
        return "no certificate below the full cache"
    text = (
        f"budget {made.budget.budget} certified (loss at most {percent(made.alpha)}, confidence "
        f"{percent(round(1 - made.delta, 12))})"
    )
    if (used := made.device_use) is None:
        return text
    return f"{text}; with controller {made.controller['label']} {_kept(used)}"


def _kept(used: DeviceUse) -> str:
    """What was on the device, over all length bins."""
    value, count = f"{used.lowest:.3f}", plural(used.n_responses, "response")
    if used.highest != used.lowest:
        value += f" to {used.highest:.3f}, by length bin,"
    return f"{value} was on the device on average ({count})"


def conditions(made: Certificate) -> str:
    """Under which the answers came about."""
    decoding, sees = made.setup["decoding"], "the context only"
    if made.setup["query_aware"]:
        sees = "context and question"
    how = f"temperature {decoding['temperature']:g}" if decoding["temperature"] else "greedy"
    if until := decoding.get("until"):
        how += f", up to the first of {', '.join(map(repr, until))}"
    return f"the press sees {sees}; at most {plural(decoding['max_new_tokens'], 'token')}, {how}"


def write(made: Certificate, file: str) -> str:
    """The page; `file` is the certificate's JSON."""
    guard = made.controller["label"]
    best = made.budget
    return PAGE.format(
        title=NONE_TITLE if best is None else TITLE, press=made.press["label"],
        controller="" if guard == "none" else f" + {guard}",
        dataset=made.setup["dataset"], statement=_statement(made), losses=_losses(made),
        tables="\n\n".join(_table(g, made) for g in made.groups),
        test=made.test, level=_level(made), device=_device(made), alpha=percent(made.alpha),
        model=f"{made.model['name']}, hash {made.model['hash']}, {made.model['dtype']}",
        method=_method(made), guard=guard if guard == "none" else _fields(made.controller),
        data=f"{made.setup['dataset']}, manifest {made.setup['manifest']} "
        f"(sha256 {made.setup['manifest_sha256'][:12]})",
        setup=conditions(made),
        kvx=made.kvx, inputs=made.inputs, promise="" if best is None else _promise(made, file),
    )  # fmt: skip


def _promise(made: Certificate, file: str) -> str:
    return PROMISE.format(
        n=f"{sum(g.n for g in made.groups):,}", alpha=percent(made.alpha),
        wrong=f"{100 * made.delta:g}", choice=_choice(made), file=file,
        longest=made.setup["decoding"]["max_new_tokens"],
        or_controller="" if made.controller["label"] == "none" else ", or for no controller,",
    )  # fmt: skip


def _statement(made: Certificate) -> str:
    confidence = percent(round(1 - made.delta, 12))
    best = made.budget
    if best is None:
        return (
            f"No budget below 1.0 is certified for a loss of at most {percent(made.alpha)} with "
            f"confidence {confidence}. Serve the full cache, or look for why in the table."
        )
    kept = f"{best.budget} of the prompt's KV entries"
    if best.tokens is not None:
        kept = f"{best.tokens:,} of the prompt's KV entries"
    where = "" if whole(made.groups[0]) else ", in every length bin"
    guard = made.controller["label"]
    if guard != "none":
        kept += f", more where controller {guard} relaxes,"
        if (used := made.device_use) is not None:
            kept += f" so that {_kept(used)},"
    return (
        f"Keeping {kept} loses at most {percent(made.alpha)} against the full cache{where}, "
        f"with confidence {confidence}."
    )


def _losses(made: Certificate) -> str:
    text = "Loss: " + RISK[made.loss].format(metric=made.metric) + ". One value per prompt"
    if made.test != "exact binomial":
        text += " (the mean of its examples, where several share a text)"
    left_out = sum(g.n_left_out for g in made.groups)
    if left_out:
        text += f"; {plural(left_out, 'example')} without an answer of the full cache left out"
    return text + "."


def _table(group: Group, made: Certificate) -> str:
    header = ["budget", "prompts", "lost in all", "mean loss", "p", "verdict"]
    rows = [_cells(t) for t in group.tests]
    if any(t.mean_budget is not None for t in group.tests):
        header.insert(1, "on the device (responses)")
        for row, tested in zip(rows, group.tests, strict=True):
            row.insert(1, _on_device(tested))
    table = markdown(header, rows)
    if whole(group):
        return table
    return f"Contexts of {group.low_tokens}–{group.high_tokens} tokens:\n\n{table}"


def _on_device(tested: Tested) -> str:
    if tested.mean_budget is None:
        return number(None, "")
    return f"{tested.mean_budget:.3f} ({tested.n_responses:,})"


def _cells(tested: Tested) -> list[str]:
    mean = None if not tested.n else (tested.total_loss or 0.0) / tested.n
    verdict = str(tested.verdict)
    if tested.verdict is Verdict.CERTIFIED:
        verdict = f"**{verdict}**"
    if tested.reason:
        verdict += f": {tested.reason}"
    return [
        tested.budget, f"{tested.n:,}", number(tested.total_loss, "{:g}"), number(mean, "{:.3f}"),
        number(tested.p, "{:.2g}"), verdict,
    ]  # fmt: skip


def _device(made: Certificate) -> str:
    if all(t.mean_budget is None for g in made.groups for t in g.tests):
        return ""
    return (
        " On the device: the share of the prompt's KV entries that was there with the controller, "
        "a mean over all decoded steps, each with its prompt's entries as weight."
    )


def _level(made: Certificate) -> str:
    if made.delta_per_group == made.delta:
        return f"each at level {percent(made.delta)}"
    return (
        f"each at level {made.delta_per_group:.3g}: {percent(made.delta)} shared among "
        f"{len(made.groups)} length bins (Bonferroni), so that all hold together"
    )


def _choice(made: Certificate) -> str:
    if made.curves == 1:
        return ""
    return (
        f" The experiment has {made.curves} curves on these prompts: whoever picks the best of "
        f"their certificates must ask for certify.delta={made.delta / made.curves:.2g} in each."
    )


def _method(made: Certificate) -> str:
    return _fields({"name": made.press["name"], **(made.press["method"] or {})})


def _fields(values: dict[str, object]) -> str:
    return ", ".join(f"{k}={v}" for k, v in values.items() if k != "label")
