"""Do intervals cover, do tests hold their level, are certificates kept? On data of known truth.

    python -m scripts.coverage_study                  # everything; goes on where it stopped
    python -m scripts.coverage_study --part means --repeats 0.2 --seed 1
    python -m scripts.coverage_study --repeats 0      # the page of what was measured so far

Writes docs/results/statistics.md. Results lie in outputs/coverage_study.jsonl, a line a setting;
those whose code has changed since, in kvx/stats or here, are measured again.
"""

import argparse
import ast
import inspect
import json
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from kvx.config.folders import package_dir
from kvx.identity.hashing import digest, sha256_file
from kvx.report.tables import markdown
from kvx.store.atomic import write_text
from scripts import (
    coverage_auroc,
    coverage_certificates,
    coverage_curves,
    coverage_intervals,
    coverage_lengths,
    coverage_margins,
    coverage_presses,
)
from scripts.coverage_base import SURE, Ask, Part, Result, Setting

ROOT = package_dir().parent
PAGE = ROOT / "docs" / "results" / "statistics.md"
STORE = ROOT / "outputs" / "coverage_study.jsonl"
PARTS = [
    *coverage_intervals.PARTS,
    *coverage_margins.PARTS,
    *coverage_curves.PARTS,
    *coverage_lengths.PARTS,
    *coverage_presses.PARTS,
    *coverage_auroc.PARTS,
    *coverage_certificates.PARTS,
]
MOST_SHORT = 12  # settings listed for a part
FOLLOWED = ("kvx.stats.", "kvx.analyze.leaders", "scripts.coverage_")
Key = str
Measured = tuple[int, Result]  # repeats
HEAD = """# Are the statistics right?

Made by

    python -m scripts.coverage_study

on data of known truth, with the functions that `kvx analyze` and `kvx certify` call. A share falls
short if its {sure:.0%} interval lies outside of what is asked: chance alone leaves one of a hundred
settings there. At a true 95% that interval is 12 points wide with 100 repeats and 4 with 1,000:
few repeats show coarse faults only, and `--repeats` asks for more. With 50, a test that rejects in
12% where 6% is asked does not fall short. Numbers are the lowest and the highest share over a row's
settings. Seed {seed}.

`scripts.null_study` counts the false sentences of whole reports, `scripts.curve_study` also those
on instability.
"""


def code_digest(part: Part) -> str:
    """Of the statistics and scripts that a result depends on."""
    files = sorted(code_behind(Path(inspect.getfile(part.measure))))
    return digest([sha256_file(file) for file in files], 12)


@cache
def code_behind(file: Path) -> frozenset[Path]:
    """`file` and the modules of statistics and of this study that it imports, theirs too."""
    found = {file}
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
            path = ROOT / f"{name.replace('.', '/')}.py"
            if name.startswith(FOLLOWED) and path.is_file():
                found |= code_behind(path)
    return frozenset(found)


def key_of(part: Part, setting: Setting, seed: int) -> Key:
    return digest([part.name, setting, seed, code_digest(part)], 16)


def read_store(store: Path) -> dict[Key, Measured]:
    """What was measured, the most repeats of each.

    A last line that was cut off by a kill is dropped from the file.
    """
    lines = store.read_text().splitlines(keepends=True) if store.is_file() else []
    if lines and not lines[-1].endswith("\n"):
        store.write_text("".join(lines[:-1]))
        del lines[-1]
    found: dict[Key, Measured] = {}
    for line in map(json.loads, lines):
        if line["key"] not in found or line["repeats"] > found[line["key"]][0]:
            found[line["key"]] = line["repeats"], line["result"]
    return found


def run(
    parts: Sequence[Part], repeats: float, seed: int, store: Path
) -> dict[str, list[tuple[Setting, Result]]]:
    """The result of every setting of `parts`; measured if `store` has none of so many repeats.

    Each result says its `times`, the repeats it is from. With `repeats` 0 nothing is measured, and
    settings that never were are left out.
    """
    known = read_store(store)
    store.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[tuple[Setting, Result]]] = {}
    for part in parts:
        times, began = round(repeats * part.repeats), time.monotonic()
        times = max(1, times) if repeats else 0
        rows = found.setdefault(part.name, [])
        for number, setting in enumerate(part.settings):
            key = key_of(part, setting, seed)
            if known.get(key, (0, {}))[0] < times:
                rng = np.random.default_rng((seed, number))
                known[key] = times, part.measure(setting, times, rng)
                with store.open("a") as file:
                    line = {"key": key, "part": part.name, "repeats": times, "setting": setting}
                    file.write(json.dumps({**line, "result": known[key][1]}) + "\n")
            if key in known:
                rows.append((setting, {**known[key][1], "times": known[key][0]}))
        seconds = time.monotonic() - began
        print(f"{part.name}: {len(rows)} settings, {seconds:.0f} s", file=sys.stderr, flush=True)
    return found


def section(part: Part, rows: Sequence[tuple[Setting, Result]]) -> str:
    """A part of the page: a table, then what falls short."""
    groups: dict[tuple[object, ...], list[tuple[Setting, Result]]] = {}
    for setting, result in rows:
        groups.setdefault(tuple(setting[name] for name in part.rows), []).append((setting, result))
    header = [*part.rows, "settings", *(_title(ask) for ask in part.asks), "short"]
    lines = [
        [
            *map(str, key), str(len(group)),
            *(_range(ask, group) for ask in part.asks),
            str(sum(_is_short(part, *row) for row in group) or "–"),
        ]
        for key, group in groups.items()
    ]  # fmt: skip
    about = f"{part.about} {_times(rows)} repeats a setting."
    if missing := len(part.settings) - len(rows):
        about += f" {missing} of {len(part.settings)} settings were not measured."
    text = [f"## {part.title}", about, markdown(header, lines)]
    return "\n\n".join([*text, *_shortfalls(part, rows)])


def _times(rows: Sequence[tuple[Setting, Result]]) -> str:
    """The repeats of a setting: `20`, or `20 to 1,000`."""
    times = sorted({int(result["times"]) for _, result in rows})
    return " to ".join(f"{n:,}" for n in dict.fromkeys((times[0], times[-1])))


def _title(ask: Ask) -> str:
    if ask.low == 0 and ask.high == 1:
        return ask.title
    if ask.low == 0:
        return f"{ask.title} (at most {ask.high:.0%})"
    if ask.high == 1:
        return f"{ask.title} (at least {ask.low:.0%})"
    return f"{ask.title} ({100 * ask.low:g}–{100 * ask.high:g}%)"


def _range(ask: Ask, rows: Sequence[tuple[Setting, Result]]) -> str:
    shares = [r[ask.k] / r[ask.n] for s, r in rows if ask.known(s, r)]
    if not shares:
        return "–"
    low, high = f"{min(shares):.3f}", f"{max(shares):.3f}"
    return low if low == high else f"{low} … {high}"


def _is_short(part: Part, setting: Setting, result: Result) -> bool:
    return any(ask.short(setting, result) for ask in part.asks)


def _shortfalls(part: Part, rows: Sequence[tuple[Setting, Result]]) -> Iterator[str]:
    short = [row for row in rows if _is_short(part, *row)]
    if not short:
        none = f"None of {len(rows)} settings falls short"
        yield f"{none}, as far as {_times(rows)} repeats can tell."
        return
    yield f"{len(short)} of {len(rows)} settings fall short; the worst:"

    def worst(row: tuple[Setting, Result]) -> float:
        setting, result = row
        asks = [a for a in part.asks if a.short(setting, result)]
        shares = [(result[a.k] / result[a.n], a) for a in asks]
        return -max(max(a.low - share, share - a.high) for share, a in shares)

    names = list(short[0][0])
    lines = [
        [*(str(row[0][name]) for name in names), *(_range(ask, [row]) for ask in part.asks)]
        for row in sorted(short, key=worst)[:MOST_SHORT]
    ]
    yield markdown([*names, *(ask.title for ask in part.asks)], lines)


def page(found: dict[str, list[tuple[Setting, Result]]], seed: int) -> str:
    parts = [section(part, found[part.name]) for part in PARTS if found.get(part.name)]
    if missing := [part.title for part in PARTS if found.get(part.name) == []]:
        parts.append(f"Not measured: {'; '.join(missing)}.")
    return "\n".join([HEAD.format(sure=SURE, seed=seed), "\n\n".join(parts), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="coverage and error rates of kvx's statistics")
    names = [part.name for part in PARTS]
    parser.add_argument("--part", action="append", choices=names, help="only these; not written")
    parser.add_argument("--repeats", type=float, default=1.0, help="times each part's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path, default=STORE)
    asked = parser.parse_args()
    parts = [p for p in PARTS if asked.part is None or p.name in asked.part]
    text = page(run(parts, asked.repeats, asked.seed, asked.store), asked.seed)
    print(text)
    if asked.part is None:
        write_text(PAGE, text)


if __name__ == "__main__":
    main()
