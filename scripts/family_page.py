"""The result page of scripts/family_matrix.py: both stacks' results as a part of docs/models.md."""

import json
import re
from collections.abc import Iterator
from typing import Any

from kvx.config.folders import package_dir
from kvx.store.atomic import write_text

DOCS = package_dir().parent / "docs"
BEGIN, END = "<!-- begin: family_matrix -->", "<!-- end: family_matrix -->"
SIGNS = {
    "same": "·", "adapted": "a", "undecided": "r", "not applicable": "–", "no reference": "?",
    "error": "E", "wrong": "W",
}  # fmt: skip
WORST = list(SIGNS)
ABOUT = """\
The models are tiny and random, in float32. Each is asked with every press at budgets 1, 0.5 and
0.2, about prompts of 131, 246 and 533 tokens; windows have 256. Tokens and log-probabilities (to
1e-4) are compared with `generate` and, for a press, with its own `compress` on one sequence
(`tests/family_reference.py`). The sign is the worst of all budgets; where stacks differ, that of
the older one comes first. `·` the same; `a` the same as a reference that hands the press what it
lacks on the family or finds wrong there (`tests/family_adapted.py`); `r` rounding decides what the
press keeps; `–` not applicable, refused before the run; `?` no reference to compare with; `E` an
error; `W` other answers."""
Stack = dict[str, Any]


def write_page() -> None:
    """Replace the generated part of docs/models.md."""
    page = DOCS / "models.md"
    text = page.read_text()
    part = f"{BEGIN}\n{generated(stacks())}{END}\n"
    if BEGIN in text:
        pattern = re.compile(re.escape(BEGIN) + ".*" + re.escape(END) + "\n", re.S)
        text = pattern.sub(lambda _: part, text)
    else:
        text = f"{text.rstrip()}\n\n{part}"
    write_text(page, text)


def stacks() -> list[Stack]:
    """The results of every stack, the oldest transformers first."""
    files = (DOCS / "results").glob("families-*.json")
    found = [json.loads(file.read_text()) for file in files]
    return sorted(found, key=lambda s: [int(n) for n in _release(s).split(".")])


def _release(stack: Stack) -> str:
    return str(stack["versions"]["transformers"])


def generated(stacks: list[Stack]) -> str:
    """The section: what was run, the table, and a line for each reason."""
    return "\n".join([*_head(stacks), "", *_table(stacks), "", *_reasons(stacks), ""])


def _head(stacks: list[Stack]) -> Iterator[str]:
    yield "## Families and presses"
    yield ""
    yield "Written by `PYTHONPATH=. python scripts/family_matrix.py --page` from:"
    yield ""
    for stack in stacks:
        families = stack["families"].values()
        cells = [c for f in families for budgets in f["cells"].values() for c in budgets.values()]
        counts = {sign: sum(verdict == sign for verdict, _ in cells) for sign in WORST}
        yield (
            f"- `PYTHONPATH=. python scripts/family_matrix.py`, {stack['date']}, "
            + ", ".join(f"{name} {number}" for name, number in stack["versions"].items())
            + f": {len(families)} families, {sum(f['shared'] for f in families)} of them on the "
            + "shared path; points: "
            + ", ".join(f"{number} {sign}" for sign, number in counts.items() if number)
        )
    yield ""
    yield ABOUT


def _table(stacks: list[Stack]) -> Iterator[str]:
    presses = list(
        dict.fromkeys(p for s in stacks for f in s["families"].values() for p in f["cells"])
    )
    presses.sort(key=lambda p: (p != "none", p))
    families = list(dict.fromkeys(name for s in stacks for name in s["families"]))
    yield "| family | path | " + " | ".join(presses) + " |"
    yield "|---|---|" + "---|" * len(presses)
    for name in families:
        here = [s["families"][name] for s in stacks if name in s["families"]]
        path = _both(["shared" if f["shared"] else "alone" for f in here])
        signs = [_both([_sign(f["cells"].get(press, {})) for f in here]) for press in presses]
        yield f"| {name} | {path} | " + " | ".join(signs) + " |"


def _sign(cells: dict[str, list[str]]) -> str:
    return SIGNS[max((verdict for verdict, _ in cells.values()), key=WORST.index)] if cells else ""


def _both(signs: list[str]) -> str:
    return signs[0] if len(set(signs)) == 1 else "/".join(signs)


def _reasons(stacks: list[Stack]) -> Iterator[str]:
    """By stack and reason: which families and presses are not the same or adapted, or alone."""
    for stack in stacks:
        told: dict[str, dict[str, list[str]]] = {}
        for name, family in stack["families"].items():
            for press, cells in family["cells"].items():
                for verdict, reason in cells.values():
                    if verdict not in ("same", "adapted"):
                        line = f"{verdict}: {_general(reason, name, press)}"
                        seen = told.setdefault(line, {}).setdefault(name, [])
                        if press not in seen:
                            seen.append(press)
            if not family["shared"]:
                for line in family["warnings"]:
                    told.setdefault(f"alone: {_general(line, name, '')}", {})[name] = []
        if told:
            yield f"transformers {_release(stack)}:"
            yield ""
        for line, where in sorted(told.items()):
            places = "; ".join(f"{n} ({', '.join(p)})" if p else n for n, p in where.items())
            yield f"- {line}: {places}"
        yield ""


def _general(reason: str, family: str, press: str) -> str:
    """A reason without what differs from one family or press to another."""
    line = reason.replace(family, "…")
    for name in filter(None, (press,)):
        line = line.replace(f"press={name}", "press=…")
    line = re.sub(r"/\S*/(site-packages|kvx)/", "", line)
    return re.sub(r"\d\.\de[+-]\d\d nats; \d+ of \d+ tokens agree", "other log-probabilities", line)
