"""SLURM jobs that were submitted for an experiment, and which of them still wait or run.

Kept in `jobs.json` of the experiment, so that a second command does not do the same work again.
"""

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvx.errors import UserError
from kvx.points import Point, experiment_dir
from kvx.store.atomic import write_text
from kvx.store.locks import alone

RECORD, LOCK = "jobs.json", ".jobs.lock"


@dataclass(frozen=True)
class Submission:
    """One sweep's jobs: SLURM's ids (`12` stands for all of array 12), and where their logs are."""

    job_ids: list[str]
    point_ids: list[str]
    logs: str
    submitted_at: str


def experiments(points: Iterable[Point]) -> dict[Path, list[str]]:
    """The points' ids by experiment directory."""
    found: dict[Path, list[str]] = {}
    for point in points:
        found.setdefault(experiment_dir(point.config), []).append(point.id)
    return found


def read(folder: Path) -> list[Submission]:
    """What was submitted for the experiment in `folder`."""
    try:
        entries: list[dict[str, Any]] = json.loads((folder / RECORD).read_text())
        return [Submission(**entry) for entry in entries]
    except (OSError, json.JSONDecodeError, TypeError):
        return []


def remember(folder: Path, submission: Submission) -> None:
    """Add to the experiment's record; what is over is dropped from it."""
    with alone(folder / LOCK):
        before = read(folder)
        active = active_jobs(i for entry in before for i in entry.job_ids)
        kept = [e for e in before if active is None or _running(e.job_ids, active)]
        entries = [asdict(entry) for entry in (*kept, submission)]
        write_text(folder / RECORD, json.dumps(entries, indent=1) + "\n")


def active_jobs(job_ids: Iterable[str]) -> dict[str, str] | None:
    """State of those jobs (array elements one by one) that wait or run; None if SLURM is silent.

    A job that waits has the reason with it: `PENDING (Resources)`.
    """
    wanted = sorted({job_id.partition("_")[0] for job_id in job_ids})
    if not wanted:
        return {}
    # not by -j: one unknown id among them, and squeue names none
    command = ["squeue", "--me", "-h", "-r", "-o", "%i|%T|%r"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    if asked.returncode:
        return None
    states = {}
    for line in asked.stdout.splitlines():
        job, state, reason = line.split("|", 2)
        if job.partition("_")[0] in wanted:
            waits = state == "PENDING" and reason != "None"
            states[job] = f"{state} ({reason})" if waits else state
    return states


def in_words(active: dict[str, str]) -> list[str]:
    """`["2 running", "1 pending (Resources)"]`, the most frequent first."""
    found = []
    for state, n in Counter(active.values()).most_common():
        word, _, reason = state.partition(" ")
        found.append(f"{n} {word.lower()} {reason}".rstrip())
    return found


def active_submissions(folder: Path) -> list[tuple[Submission, dict[str, str]]]:
    """Submissions for the experiment in `folder` that wait or run, with their jobs' states.

    None where SLURM does not say.
    """
    found = [(entry, active_jobs(entry.job_ids)) for entry in read(folder)]
    return [(entry, states) for entry, states in found if states]


def _running(job_ids: Sequence[str], active: dict[str, str]) -> bool:
    return any(job.partition("_")[0] in job_ids for job in active)


def refuse_if_submitted(points: Sequence[Point]) -> None:
    """Raises `UserError` if jobs submitted earlier may still wait for or work on the points."""
    for folder, ids in experiments(points).items():
        ours = [s for s in read(folder) if not set(s.point_ids).isdisjoint(ids)]
        active = active_jobs(i for s in ours for i in s.job_ids)
        if active is None:
            asked = ", ".join(i for s in ours for i in s.job_ids)
            raise UserError(
                f"squeue does not say whether SLURM jobs {asked} still work on these points; type "
                f"the command where it does, or delete {folder / RECORD} if they have ended"
            )
        busy = [i for s in ours for i in s.job_ids if _running([i], active)]
        if busy:
            many = "jobs" if len(busy) > 1 else "job"
            do = "still wait for or work" if len(busy) > 1 else "still waits for or works"
            raise UserError(
                f"SLURM {many} {', '.join(busy)} {do} on these points; "
                f"let them end, or end them with: scancel {' '.join(busy)}"
            )
