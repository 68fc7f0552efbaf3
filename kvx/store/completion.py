"""Whether a point has all that its configuration asks for, from DONE alone; imports no Arrow."""

import json
import logging
from collections.abc import Container

from kvx.errors import UserError
from kvx.points import Point
from kvx.store import layout
from kvx.store.layout import Done

log = logging.getLogger(__name__)


def is_done(point: Point) -> bool:
    """Whether there is nothing to do: complete, and nothing to retry. Raises as `is_complete`."""
    return is_complete(point, retry=True)


def is_complete(point: Point, retry: bool = False) -> bool:
    """Whether all that the configuration asks for is there, in unchanged files.

    A request that got no response counts, unless `retry` and `run.retry_failed` ask for it again.
    Raises `UserError` if the point was run with another manifest.
    """
    folder, done = point.dir, layout.read_done(point.dir)
    if done is None or not covers(point, done) or (folder / "FAILED").exists():
        return False
    if retry and has_something_to_retry(point, done):
        return False
    check_manifest(point)
    changed = layout.changed(folder, done)
    for name in changed:
        log.warning("run: %s is corrupt: it changed after the point finished", folder / name)
    return not changed


def covers(point: Point, done: Done) -> bool:
    """Whether as much is done as the configuration asks for."""
    asked = len(point.manifest.entries) if point.wants_answers else 0
    compared = covers_fidelity(point, done.fidelity)
    return done.requests >= asked and covers_latency(point, done.latency) and compared


def covers_latency(point: Point, measured: dict[str, list[int]]) -> bool:
    """Whether `measured` holds every repeat of every example that is to run alone."""
    return all(n in measured.get(entry.example_id, ()) for entry, n in point.latency_items)


def covers_fidelity(point: Point, compared: Container[str]) -> bool:
    """Whether every example that is to be compared with the full cache is in `compared`."""
    return all(entry.example_id in compared for entry in point.fidelity_entries)


def has_something_to_retry(point: Point, done: Done) -> bool:
    """Whether `run.retry_failed` asks for something that got no response."""
    lost = done.without_response if point.wants_answers else 0
    lost += done.latency_failed if point.wants_latency else 0
    lost += done.fidelity_failed if point.wants_fidelity else 0
    return point.config.run.retry_failed and lost > 0


def check_manifest(point: Point) -> None:
    """Raises `UserError` if the point was run with another manifest."""
    path, now = point.dir / "point.json", point.manifest.sha256
    try:
        ran_with = json.loads(path.read_text())["manifest"]["sha256"]
    except FileNotFoundError:
        return
    if ran_with != now:
        raise UserError(
            f"{path}: was run with another manifest ({ran_with[:8]}, now {now[:8]}); delete "
            f"{point.dir} or restore the manifest"
        )
