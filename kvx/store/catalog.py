"""Reading an experiment: its finished points, their requests, scores and failures."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from kvx.config.folder_names import is_name
from kvx.config.numbers import exact
from kvx.errors import UserError
from kvx.identity.hashing import digest
from kvx.store import contents, layout, schemas
from kvx.store.layout import EVENTS, KINDS, LATENCY, REQUESTS, Done

log = logging.getLogger(__name__)
LATENCY_ONLY = "it has no answers, only latencies"


@dataclass(frozen=True)
class PointRecord:
    """One finished point on disk; `info` is its point.json."""

    dir: Path
    info: dict[str, Any]
    done: Done

    @property
    def id(self) -> str:
        return str(self.info["id"])

    @property
    def budget_asked(self) -> float:
        """The number that was asked for: of `budget_kind` ratio a fraction, of tokens as many."""
        in_tokens = self.info["budget_kind"] == "tokens"
        return float(self.info["budget_tokens" if in_tokens else "budget"])

    @property
    def is_full_cache(self) -> bool:
        return bool(self.info["budget_kind"] == "ratio" and self.budget_asked == 1.0)

    @property
    def is_guarded(self) -> bool:
        """Whether a controller steered it."""
        return self.info.get("guard") is not None

    def content_sha256(self, *kinds: str) -> str:
        """Identity of what the point measured; of `kinds` of it alone if any are given."""
        names = [f"{kind}.parquet" for kind in kinds or KINDS]
        return digest([self.done.files[n]["sha256"] for n in names if n in self.done.files], 16)

    def manifest_dir(self, output: Path) -> Path:
        names = str(self.info["dataset"]), str(self.info["manifest"]["key"])
        if not all(map(is_name, names)):
            raise UserError(
                f"{self.dir / 'point.json'}: dataset and manifest.key must be names of folders; "
                "the file was edited: delete the point and run it again"
            )
        return output / "data" / "processed" / names[0] / names[1]


def read_frame(paths: Sequence[Path]) -> pd.DataFrame:
    """Several Parquet files as one frame. Raises `UserError` naming a file that cannot be read."""
    tables = map(contents.read_table, paths)
    frame: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
    return frame


def requests_of(points: Sequence[PointRecord]) -> pd.DataFrame:
    """Every request of points that have answers; nulls where an older kvx had no such column."""
    frame = read_frame([layout.merged(p.dir, REQUESTS) for p in points])
    return frame.reindex(columns=schemas.REQUESTS.names)


def latency_of(points: Sequence[PointRecord]) -> pd.DataFrame:
    """Every measurement of requests that ran alone; no row where nothing was measured."""
    return _merged(points, LATENCY, schemas.LATENCY)


def events_of(points: Sequence[PointRecord]) -> pd.DataFrame:
    """What controllers did, by point, request and index; no row where there was none."""
    return _merged(points, EVENTS, schemas.EVENTS)


def _merged(points: Sequence[PointRecord], kind: str, schema: pa.Schema) -> pd.DataFrame:
    """A table of the points that have it; nulls where an older kvx had no such column."""
    paths = [layout.merged(p.dir, kind) for p in points if p.done.holds(kind)]
    frame = read_frame(paths) if paths else schema.empty_table().to_pandas()
    return frame.reindex(columns=schema.names)


def finished_points(experiment: Path) -> list[PointRecord]:
    """The experiment's complete points that have answers, sorted by id.

    Others are left out and named in the log. Raises `UserError` if no point is left.
    """
    left_out, records = unfinished_points(experiment), answered_points(experiment)
    if left_out:
        log.warning(
            "%d of %d points are unfinished, failed or without answers, and left out: %s",
            len(left_out), len(left_out) + len(records), ", ".join(list(left_out)[:5]),
        )  # fmt: skip
    if not records and LATENCY_ONLY in left_out.values():
        raise UserError(
            f"{experiment}: no finished point has answers, only latencies; run with "
            "measure=quality or measure=both"
        )
    if not records:
        raise UserError(
            f"{experiment}: no finished point; start with kvx.run and the same arguments"
        )
    return records


def answered_points(experiment: Path) -> list[PointRecord]:
    """As `finished_points`, silently and possibly empty."""
    left_out = unfinished_points(experiment)
    records = []
    for folder in sorted((experiment / "points").glob("*/")):
        done = layout.read_done(folder)
        if folder.name not in left_out and done is not None:
            info = json.loads((folder / "point.json").read_text())
            if info["budget_kind"] == "ratio":  # older runs told six digits of it
                info["budget_label"] = exact(info["budget"])
            records.append(PointRecord(folder, info, done))
    return records


def unfinished_points(experiment: Path) -> dict[str, str]:
    """Points that no table holds, and why."""
    reasons = {}
    for folder in sorted((experiment / "points").glob("*/")):
        failed, done = layout.read_failed(folder), layout.read_done(folder)
        if failed is not None:
            reasons[folder.name] = f"failed: {failed}"
        elif done is None:
            reasons[folder.name] = "unfinished"
        elif not done.holds(REQUESTS):
            reasons[folder.name] = LATENCY_ONLY
    return reasons
