"""SLURM jobs that were submitted for an experiment, and which of them still wait or run.

`jobs.json` of the experiment records them, so that a second command does not repeat their work.
"""

import json
import subprocess
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvx.errors import UserError
from kvx.points import Point, by_experiment
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


def read(folder: Path) -> list[Submission]:
    """What was submitted for the experiment in `folder`."""
    try:
        entries: list[dict[str, Any]] = json.loads((folder / RECORD).read_text())
        return [Submission(**entry) for entry in entries]
    except (OSError, json.JSONDecodeError, TypeError):
        return []


def remember(folder: Path, submission: Submission) -> None:
    """Add to the experiment's record, and drop jobs that have ended from it."""
    with alone(folder / LOCK):
        before = read(folder)
        active = active_jobs(i for entry in before for i in entry.job_ids)
        kept = [e for e in before if active is None or _running(e.job_ids, active)]
        entries = [asdict(entry) for entry in (*kept, submission)]
        write_text(folder / RECORD, json.dumps(entries, indent=1) + "\n")


def active_jobs(job_ids: Iterable[str]) -> dict[str, str] | None:
    """State of those jobs (array elements one by one) that wait or run; None if squeue fails.

    A waiting job's state includes the reason: `PENDING (Resources)`.
    """
    wanted = sorted({job_id.partition("_")[0] for job_id in job_ids})
    if not wanted:
        return {}
    # not by -j: one unknown id makes squeue fail for all
    listed = ask_slurm("squeue", "--me", "-h", "-r", "-o", "%i|%T|%r")
    if listed is None:
        return None
    states = {}
    for line in listed.splitlines():
        job, state, reason = line.split("|", 2)
        if job.partition("_")[0] in wanted:
            waits = state == "PENDING" and reason != "None"
            states[job] = f"{state} ({reason})" if waits else state
    return states


def ask_slurm(*command: str) -> str | None:
    """What one of SLURM's commands prints; None if it fails or is missing."""
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return None if asked.returncode else asked.stdout


def in_words(active: dict[str, str]) -> list[str]:
    """`["2 running", "1 pending (Resources)"]`, the most frequent first."""
    found = []
    for state, n in Counter(active.values()).most_common():
        word, _, reason = state.partition(" ")
        found.append(f"{n} {word.lower()} {reason}".rstrip())
    return found


def active_submissions(folder: Path) -> list[tuple[Submission, dict[str, str]]]:
    """Submissions for the experiment in `folder` that wait or run, with their jobs' states."""
    found = [(entry, active_jobs(entry.job_ids)) for entry in read(folder)]
    return [(entry, states) for entry, states in found if states]


def _running(job_ids: Sequence[str], active: dict[str, str]) -> bool:
    return any(job.partition("_")[0] in job_ids for job in active)


def refuse_if_submitted(points: Sequence[Point]) -> None:
    """Raises `UserError` if jobs submitted earlier may still wait for or work on the points."""
    for folder, same in by_experiment(points).items():
        ids = {point.id for point in same}
        jobs = [i for s in read(folder) if not ids.isdisjoint(s.point_ids) for i in s.job_ids]
        active = active_jobs(jobs)
        if active is None:
            raise UserError(
                f"squeue cannot tell whether SLURM jobs {', '.join(jobs)} still work on these "
                f"points; run it where squeue works, or delete {folder / RECORD} if they have ended"
            )
        if busy := [job for job in jobs if _running([job], active)]:
            raise UserError(
                f"SLURM job {', '.join(busy)} still waits or runs for these points; let it end, or "
                f"end it with: scancel {' '.join(busy)}"
            )
