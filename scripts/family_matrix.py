"""Every shipped press on tiny models of many families, beside a reference without kvx's code.

    PYTHONPATH=. python scripts/family_matrix.py    # all that is missing, with this stack
    PYTHONPATH=. python scripts/family_matrix.py --families llama gemma3 --presses snapkv
    PYTHONPATH=. python scripts/family_matrix.py --page  # both stacks' results into docs/models.md

Results go to docs/results/families-<transformers version>.json, a family at a time. A run that was
stopped goes on where it was. With `--presses`, `--budgets` or `--set` nothing is stored.
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from kvx.config.folders import package_dir
from kvx.store.atomic import write_text
from tests.families import available
from tests.family_cells import Column, column, shipped

BUDGETS = (1.0, 0.5, 0.2)
LIBRARIES = ("transformers", "kvpress", "torch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--families", nargs="+", default=available())
    parser.add_argument("--presses", nargs="+")
    parser.add_argument("--budgets", nargs="+", type=float)
    parser.add_argument("--again", action="store_true", help="families that have results, too")
    parser.add_argument("--set", nargs="+", default=[], help="overrides of kvx's configuration")
    parser.add_argument("--page", action="store_true", help="write docs/models.md")
    asked = parser.parse_args()
    if asked.page:
        from scripts.family_page import write_page

        write_page()
        return
    logging.getLogger().addHandler(logging.NullHandler())  # none goes to the terminal
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    presses = asked.presses or list(shipped())
    partly = bool(asked.presses or asked.budgets or asked.set)
    done = {} if partly else stored()
    for name in asked.families:
        if name in done and not asked.again:
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            found = column(name, Path(folder), presses, asked.budgets or BUDGETS, *asked.set)
        seconds = time.perf_counter() - start
        show(name, found, seconds)
        if not partly:
            done[name] = as_json(found, seconds)
            store({name: done[name] for name in available() if name in done})


def results_file() -> Path:
    folder = package_dir().parent / "docs" / "results"
    return folder / f"families-{transformers.__version__}.json"


def stored() -> dict[str, Any]:
    """Results by family, made with this very stack; empty if there are none."""
    if not results_file().is_file():
        return {}
    found = json.loads(results_file().read_text())
    return found["families"] if found["versions"] == versions() else {}


def versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


def store(done: dict[str, Any]) -> None:
    about = {"versions": versions(), "date": time.strftime("%Y-%m-%d")}
    write_text(results_file(), as_lines(about, done))


def as_lines(about: dict[str, Any], families: dict[str, Any]) -> str:
    """JSON with a line for each family."""
    head = json.dumps(about, indent=1).removesuffix("\n}")
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(c)}" for name, c in families.items())
    return f'{head},\n "families": {{\n{lines}\n }}\n}}\n'


def as_json(found: Column, seconds: float) -> dict[str, Any]:
    cells: dict[str, dict[str, list[str]]] = {}
    for (press, budget), cell in found.cells.items():
        cells.setdefault(press, {})[f"{budget:g}"] = [cell.verdict, cell.reason]
    return {
        "cells": cells,
        "shared": found.shared,
        "prefills": found.prefills,
        "requests": found.requests,
        "warnings": found.warnings,
        "seconds": round(seconds, 1),
    }


def show(name: str, found: Column, seconds: float) -> None:
    """One line with the counts, one for each reason that is not `same`."""
    counts = Counter(cell.verdict for cell in found.cells.values())
    told = ", ".join(f"{n} {verdict}" for verdict, n in counts.most_common())
    path = "shared" if found.shared else "alone"
    print(f"{name}: {told}; {path}, {found.prefills} prefills of {found.requests}; {seconds:.0f} s")
    reasons: dict[tuple[str, str], list[str]] = {}
    for (press, budget), cell in found.cells.items():
        if cell.verdict not in ("same", "adapted"):
            reasons.setdefault((cell.verdict, cell.reason), []).append(f"{press}-{budget:g}")
    for (verdict, reason), points in reasons.items():
        print(f"    {verdict}: {' '.join(points)}: {reason}")
    for line in found.warnings:
        print(f"    warned: {line}")
    print(end="", flush=True)


if __name__ == "__main__":
    main()
