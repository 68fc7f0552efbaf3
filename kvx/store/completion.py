"""Whether a point has all that its configuration asks for, from DONE alone: nothing is imported."""

import json
import logging

from kvx.errors import UserError
from kvx.points import Point
from kvx.store import layout
from kvx.store.layout import Done

log = logging.getLogger(__name__)


def is_done(point: Point) -> bool:
    """Whether there is nothing to do: complete, and nothing to ask again.

    Raises what `is_complete` does.
    """
    done = layout.read_done(point.dir)
    return (
        done is not None and not has_something_to_retry(point, done) and _is_complete(point, done)
    )


def is_complete(point: Point) -> bool:
    """Whether all that the configuration asks for is there, in the files it was left in.

    A request that got no response is there too. Raises `UserError` if the point was run with
    another manifest.
    """
    done = layout.read_done(point.dir)
    return done is not None and _is_complete(point, done)


def _is_complete(point: Point, done: Done) -> bool:
    folder = point.dir
    if not covers(point, done) or (folder / "FAILED").exists():
        return False
    check_manifest(point)
    changed = layout.changed(folder, done)
    for name in changed:
        log.warning("run: %s is corrupt: not what it was when the point finished", folder / name)
    return not changed


def covers(point: Point, done: Done) -> bool:
    """Whether as much is done as the configuration asks for."""
    asked = len(point.manifest.entries) if point.wants_answers else 0
    return done.requests >= asked and covers_latency(point, done.latency)


def covers_latency(point: Point, measured: dict[str, list[int]]) -> bool:
    """Whether `measured` holds every repeat of every example that is to run alone."""
    return all(
        repeat in measured.get(entry.example_id, ()) for entry, repeat in point.latency_items
    )


def has_something_to_retry(point: Point, done: Done) -> bool:
    """Whether `run.retry_failed` asks for something that got no response."""
    lost = done.without_response if point.wants_answers else 0
    return point.config.run.retry_failed and (
        lost > 0 or (point.wants_latency and done.latency_failed > 0)
    )


def check_manifest(point: Point) -> None:
    """Raises `UserError` if the point was run with another manifest."""
    path = point.dir / "point.json"
    try:
        ran_with = json.loads(path.read_text())["manifest"]["sha256"]
    except FileNotFoundError:
        return
    if ran_with != point.manifest.sha256:
        raise UserError(
            f"{path}: was run with another manifest ({ran_with[:8]}, now "
            f"{point.manifest.sha256[:8]}); delete {point.dir} or restore the manifest"
        )
