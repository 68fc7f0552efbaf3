"""How far an experiment is: the requested points (sweep.json) against those on disk."""

import json
import time
from collections import Counter
from collections.abc import Container, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kvx.config.numbers import duration
from kvx.config.schema import Config
from kvx.errors import RunFailedError, UnfinishedError, UserError
from kvx.points import experiment_dir
from kvx.run import slurm_jobs
from kvx.run.time_left import EARLY_REQUESTS
from kvx.status.watching import Look, PointStatus, State, watch
from kvx.store import contents, journal, layout, locks
from kvx.store.contents import UnreadableError
from kvx.store.layout import FIDELITY, LATENCY, REQUESTS

WINDOW_S = 300.0  # the rate is that of these last seconds
UNWRITTEN_S = 60.0  # a finished request may be in no shard for this long
ERROR_WIDTH = 90
WIDTHS = {State.not_applicable: 16}  # of the table's columns; the others are 11 wide


def print_status(config: Config) -> None:
    """Print how far the experiment is, with `status.watch` until every point has ended.

    Raises `UserError` if nothing was begun, `UnfinishedError` if something is left to do, and
    `RunFailedError` if nothing is left but points failed.
    """
    seen = look(config)
    if config.status.watch:
        seen = watch(seen, lambda: look(config), config.status.every_s)
    else:
        print("\n".join(seen.lines), flush=True)
    failed = sum(p.state is State.failed for p in seen.points)
    if seen.n_open:
        raise UnfinishedError(f"{seen.n_open} of {len(seen.points)} points are not finished")
    if failed:
        raise RunFailedError(f"{failed} of {len(seen.points)} points failed")


def look(config: Config) -> Look:
    """How far the experiment is now. Raises `UserError` if nothing was begun."""
    folder = experiment_dir(config)
    submitted = slurm_jobs.active_submissions(folder)
    points = read_status(folder, {i for entry, _ in submitted for i in entry.point_ids})
    if not points:
        raise UserError(f"{folder}: nothing was begun; start with kvx.run and the same arguments")
    states = Counter(p.state for p in points)
    ended = (State.done, State.failed, State.not_applicable)
    open_points = len(points) - sum(states[state] for state in ended)
    lines = _lines(folder, points, config.status.points)
    for entry, queue in submitted if open_points else []:
        said = ", ".join(slurm_jobs.in_words(queue))
        logs = entry.logs.removeprefix(f"{Path.cwd()}/")
        lines += ["", f"SLURM job {', '.join(entry.job_ids)}: {said}; logs: {logs}/*_log.err"]
    return Look(lines, points, open_points)


def read_status(folder: Path, queued: Container[str] = ()) -> list[PointStatus]:
    """Every point that was requested or exists, by id. Takes no lock: a run may be writing.

    The points `queued` are in SLURM's queue; no process holds their locks yet.
    """
    asked = journal.read(folder)["points"]
    there = {path.name for path in (folder / "points").glob("*/")}
    return [
        _point(folder / "points" / i, asked.get(i), i in queued) for i in sorted(there | set(asked))
    ]


def _point(folder: Path, asked: dict[str, Any] | None, queued: bool) -> PointStatus:
    about = asked or _described(folder)
    n_fidelity = about.get("fidelity", 0)  # 0 in a sweep.json of an older kvx
    wanted = about["requests"] + about["latency"] + n_fidelity

    def status(state: State, there: int, errors: int, first: str | None = None) -> PointStatus:
        return PointStatus(
            folder.name, about["press"], about["budget"], state, there, wanted, errors, first
        )

    if (reason := layout.read_not_applicable(folder)) is not None:
        wanted = 0
        return status(State.not_applicable, 0, 0, reason)
    if (reason := layout.read_failed(folder)) is not None:
        return status(State.failed, 0, 0, reason)
    done = layout.read_done(folder)
    if done is not None:
        n_latency = sum(map(len, done.latency.values()))
        errors = done.without_response + done.latency_failed + done.fidelity_failed
        whole = done.requests >= about["requests"] and len(done.fidelity) >= n_fidelity
        if whole and n_latency >= about["latency"]:
            return status(State.done, wanted, errors, _first_error(folder) if errors else None)
    rows, errors = _count(folder, REQUESTS, about["requests"])
    latencies, failed = _count(folder, LATENCY, about["latency"])
    compared, unseen = _count(folder, FIDELITY, n_fidelity)
    there, errors = rows + latencies + compared, errors + failed + unseen
    if locks.is_held(folder):
        state = State.running if there else State.waiting
    elif queued:
        state = State.waiting
    else:
        state = State.unfinished if there else State.missing
    return status(state, there, errors, _first_error(folder) if errors else None)


def _described(folder: Path) -> dict[str, Any]:
    """A point that no sweep.json names, as its point.json describes it."""
    try:
        info = json.loads((folder / "point.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {"press": "?", "budget": "?", "requests": 1, "latency": 0}
    return {
        "press": info["press"],
        "budget": info["budget_label"],
        "latency": 0,
        "requests": info["manifest"]["n_requests"],
    }


def _count(folder: Path, kind: str, most: int) -> tuple[int, int]:
    """Rows and errors of one kind, from the files' footers alone.

    At most `most`: during a merge rows are there twice.
    """
    rows = errors = 0
    for path in layout.files(folder, kind):
        try:
            metadata = pq.read_metadata(path)
        except (OSError, pa.ArrowException):  # merged away, or damaged: the next run says so
            continue
        rows += metadata.num_rows
        # lists before it are one leaf each, so a field's place among the leaves is the same
        column = metadata.schema.to_arrow_schema().get_field_index("error_type")
        groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
        errors += sum(g.num_rows - g.column(column).statistics.null_count for g in groups)
    return min(rows, most), min(errors, most)


def _first_error(folder: Path) -> str | None:
    for kind in (REQUESTS, LATENCY, FIDELITY):
        for path in layout.files(folder, kind):
            try:
                table = contents.read(path, kind, ["error_type", "error_message"])
            except (UnreadableError, FileNotFoundError):
                continue
            for row in table.to_pylist():
                if row["error_type"] is not None:
                    return f"{row['error_type']}: {row['error_message']}"
    return None


def recent_rate(folder: Path) -> float | None:
    """Requests and latencies per second of all writers in the last minutes."""
    now, since = datetime.now(UTC), datetime.now(UTC) - timedelta(seconds=WINDOW_S)
    times: list[datetime] = []
    for path in folder.glob("points/*/*.parquet"):
        kind = path.stem.split("-")[0]
        try:
            if (
                kind in (REQUESTS, LATENCY, FIDELITY)
                and path.stat().st_mtime > time.time() - WINDOW_S
            ):
                column = contents.read(path, kind, ["request_id", "finished_at"])
                times += [t for t in column["finished_at"].to_pylist() if t > since]
        except (UnreadableError, FileNotFoundError):
            continue
    return rate_of([t.timestamp() for t in times], now.timestamp())


def rate_of(times: Sequence[float], now: float) -> float | None:
    """Requests per second of those finished at `times`; None while there are too few.

    Counted from the first one: loading the model before it does not come again. What finished
    since the last one may not be written yet.
    """
    first, last = min(times, default=now), max(times, default=now)
    after = sum(t > first for t in times)
    if after < EARLY_REQUESTS:
        return None
    end = last if now - last < UNWRITTEN_S else now
    return after / max(end - first, 1e-3)


def _lines(folder: Path, points: list[PointStatus], every_point: bool) -> list[str]:
    states = Counter(p.state for p in points)
    there, asked = sum(p.there for p in points), sum(p.asked for p in points)
    counts = ", ".join(f"{states[s]} {s.value}" for s in State if states[s])
    share = f"{there / asked:.0%}" if asked else "0%"
    lines = [str(folder), f"{len(points)} points: {counts}", f"{there:,} of {asked:,} ({share})"]
    left = sum(p.asked - p.there for p in points if p.state is not State.failed)
    if states[State.running] and left and (rate := recent_rate(folder)):
        lines[-1] += f", {rate:.1f}/s in the last minutes, about {duration(left / rate)} left"
    lines += ["", *(_each(points) if every_point else _per_press(points))]
    errors = sum(p.errors for p in points)
    if errors:
        lines += ["", f"{errors} without a response"]
    apart = Counter((p.press, p.first_error) for p in points if p.state is State.not_applicable)
    lines += [""] * bool(apart)
    lines += [f"press={press}: not applicable: {why} ({n})" for (press, why), n in apart.items()]
    points = [p for p in points if p.state is not State.not_applicable]
    first = next((p for p in points if p.state is State.failed), None) or next(
        (p for p in points if p.first_error), None
    )
    if first is not None and first.first_error:
        lines.append(f"first error: {first.id}: {first.first_error}"[: ERROR_WIDTH + 10])
    return lines


def _per_press(points: list[PointStatus]) -> list[str]:
    used = [s for s in State if any(p.state is s for p in points)]
    width = max(5, *(len(p.press) for p in points))
    head = "".join(f"{s.value:>{WIDTHS.get(s, 11)}}" for s in used)
    lines = [f"{'press':<{width}} {'points':>7}{head} {'rows':>19}"]
    for press in dict.fromkeys(p.press for p in points):
        mine = [p for p in points if p.press == press]
        states = Counter(p.state for p in mine)
        rows = f"{sum(p.there for p in mine):,}/{sum(p.asked for p in mine):,}"
        counts = "".join(f"{states[s]:>{WIDTHS.get(s, 11)}}" for s in used)
        lines.append(f"{press:<{width}} {len(mine):>7}{counts} {rows:>19}")
    return lines


def _each(points: list[PointStatus]) -> list[str]:
    width = max(len(p.id) for p in points)
    return [
        f"{p.id:<{width}}  {p.state.value:<10} {p.there:>7,}/{p.asked:<7,}"
        + (f" {p.errors} without a response" if p.errors else "")
        for p in points
    ]
