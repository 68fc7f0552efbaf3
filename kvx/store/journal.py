"""What an experiment was asked to do, and how fast it went: sweep.json and rates.json.

Both lie in the experiment's directory and only help to plan and to watch: no result is made from
them. Several runs may write to them at the same time.
"""

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kvx.config.folder_names import is_name
from kvx.data.tokenizer import model_hash
from kvx.identity.provenance import command_line
from kvx.points import Point, budget_label, by_experiment, experiment_dir
from kvx.store.atomic import write_text
from kvx.store.locks import alone
from kvx.store.records import machine

SWEEP, RATES, LOCK = "sweep.json", "rates.json", ".sweep.lock"
RATED_REQUESTS = 20  # fewer say little about how fast a run is
OLD_WEIGHT = 0.5  # of earlier rates: a rate learns, and forgets a loaded machine


@dataclass(frozen=True)
class Rate:
    """How fast one process answered requests of a model, including the time to load it."""

    model_hash: str
    machine: str
    node: str
    seconds: float
    requests: int
    points: int
    prompt_tokens: int
    at: str


def begin(points: Iterable[Point]) -> None:
    """Note what is asked for before any of it is there; several sweeps add up."""
    for folder, asked in by_experiment(points).items():
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder / LOCK):
            sweep = read(folder)
            for point in asked:
                sweep["points"][point.id] = _larger(sweep["points"].get(point.id, {}), point)
            began = {"command": command_line(), "at": _now(), "points": len(asked)}
            sweep["runs"] = [*sweep["runs"], began][-20:]
            write_text(folder / SWEEP, json.dumps(sweep, indent=1) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """`points` (by id: press, budget, how many of each measure) and `runs` (command, at).

    Both are empty for an experiment that was never begun.
    """
    try:
        sweep: dict[str, Any] = json.loads((folder / SWEEP).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {"points": {}, "runs": []}
    sweep["points"] = {i: about for i, about in sweep["points"].items() if is_name(i)}
    return sweep


def _larger(known: dict[str, Any], point: Point) -> dict[str, Any]:
    requests = len(point.manifest.entries) if point.wants_answers else 0
    return {
        "press": point.config.press.name,
        "budget": budget_label(point.config.budget),
        "model": point.config.model.name,
        "requests": max(known.get("requests", 0), requests),
        "latency": max(known.get("latency", 0), len(point.latency_items)),
        "fidelity": max(known.get("fidelity", 0), len(point.fidelity_entries)),
    }


def record_rate(points: Iterable[Point], seconds: float, requests: int, prompt_tokens: int) -> None:
    """Note how fast this process answered requests of one model."""
    points = list(points)
    if requests < RATED_REQUESTS:
        return
    folder = experiment_dir(points[0].config)
    model, here = model_hash(points[0].config.model), machine()
    with alone(folder / LOCK):
        known = {(r.model_hash, r.machine, r.node): r for r in _rates(folder)}
        key = (model, here, platform.node())
        if (old := known.get(key)) is not None:
            seconds += OLD_WEIGHT * old.seconds
            requests += round(OLD_WEIGHT * old.requests)
            prompt_tokens += round(OLD_WEIGHT * old.prompt_tokens)
        known[key] = Rate(*key, seconds, requests, len(points), prompt_tokens, _now())
        rows = [asdict(rate) for rate in known.values()]
        write_text(folder / RATES, json.dumps(rows, indent=1) + "\n")


def latest_rate(runs: Path, model: str) -> Rate | None:
    """The latest rate of this model in any experiment of `runs`; this machine's own come first."""
    rates = [r for path in runs.glob(f"*/{RATES}") for r in _rates(path.parent)]
    mine = [r for r in rates if r.model_hash == model]
    return max(mine, key=lambda r: (r.node == platform.node(), r.at), default=None)


def _rates(folder: Path) -> list[Rate]:
    try:
        return [Rate(**row) for row in json.loads((folder / RATES).read_text())]
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return []


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
