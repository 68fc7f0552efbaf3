"""Write docs/results/guard_offline.md from a finished guard study, and its plot beside it.

    make guard-study && python scripts/guard_offline.py

Nothing is computed here: the tables are those that kvx.train and kvx.simulate wrote, under what
the study consisted of and the machine it ran on.
"""

import argparse
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

HEAD = """# What a guard could have known: the offline study

Made by

    make guard-study N_PROMPTS={n_prompts}
    python scripts/guard_offline.py

{n_points} points ({presses} × budgets {budgets}) on {datasets}, {n_prompts} prompts each, {model},
at most {max_new_tokens} new tokens, greedy, the whole prompt compressed
(`prompt.query_aware=true`); {requests} responses, made with kvx {version} on {hardware}. What the
words mean: [training](../guard/training.md), [controllers](../guard/controllers.md).

An onset is the first token of the first repetition: nothing of the loop precedes it. The original
KVGuard's onset, the second occurrence of a 20-token window, can leave repeated tokens before it to
be counted as forecast, so its figures are no yardstick for these.
"""


def read(experiment: Path, name: str) -> list[dict[str, Any]]:
    """A JSON file of every finished point."""
    folders = sorted(path.parent for path in (experiment / "points").glob("*/DONE"))
    return [json.loads((folder / name).read_text()) for folder in folders]


def names(points: list[dict[str, Any]], field: str) -> str:
    return ", ".join(sorted({str(point[field]) for point in points}))


def nested(text: str) -> str:
    """A page as a part of another: its headings one level down."""
    return re.sub(r"^(#+ )", r"#\1", text, flags=re.MULTILINE).strip()


def main() -> None:
    parser = argparse.ArgumentParser(description="docs/results/guard_offline.md and its plot")
    parser.add_argument("--experiment", type=Path, default=Path("outputs/runs/guard_study"))
    experiment: Path = parser.parse_args().experiment
    points, done = read(experiment, "point.json"), read(experiment, "DONE")
    pages = [experiment / "guard" / name for name in ("train.md", "simulate.md")]
    if missing := [str(page) for page in pages if not page.is_file()]:
        sys.exit(f"guard_offline: {', '.join(missing)}: not there; make guard-study")
    made = points[0]["provenance"]
    hardware = made["hardware"]
    head = HEAD.format(
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
    text = "\n\n".join([head, *(nested(page.read_text()) for page in pages)]) + "\n"
    docs = Path(__file__).parent.parent / "docs"
    picture = docs / "images" / "guard_pareto.png"
    shutil.copyfile(experiment / "guard" / "plots" / "pareto.png", picture)
    page = docs / "results" / "guard_offline.md"
    page.write_text(text.replace("(plots/pareto.png)", "(../images/guard_pareto.png)"))
    print(f"guard_offline: {len(points)} points → {page}")


if __name__ == "__main__":
    main()
