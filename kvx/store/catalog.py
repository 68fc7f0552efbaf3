"""Read an experiment: its finished points, their requests, scores and failures."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from kvx.config.folder_names import is_name
from kvx.config.numbers import exact
from kvx.errors import UserError
from kvx.identity.hashing import digest
from kvx.store import contents, fidelity_schemas, journal, layout, schemas
from kvx.store.layout import EVENTS, FIDELITY, KINDS, LATENCY, REQUESTS, Done

log = logging.getLogger(__name__)
NOT_APPLICABLE = (
    "point_id", "variant_id", "model", "dataset", "press", "budget_label", "controller", "reason",
)  # fmt: skip
LATENCY_ONLY = "it has no answers, only latencies"
FIDELITY_ONLY = "it has no answers, only fidelity"
NOT_BEGUN = "not begun"
MOST_REQUESTS = 25_000  # of points that are worked on together


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
        """Identity of what the point measured; only of `kinds`, if any are given."""
        names = [f"{kind}.parquet" for kind in kinds or KINDS]
        return digest([self.done.files[n]["sha256"] for n in names if n in self.done.files], 16)

    def manifest_dir(self, output: Path) -> Path:
        names = str(self.info["dataset"]), str(self.info["manifest"]["key"])
        if not all(map(is_name, names)):
            raise UserError(
                f"{self.dir / 'point.json'}: was edited (dataset or manifest.key is not a folder's "
                "name); delete the point and run it again"
            )
        return output / "data" / "processed" / names[0] / names[1]


def read_frame(paths: Sequence[Path]) -> pd.DataFrame:
    """Several Parquet files as one frame. Raises `UserError` naming a file that cannot be read.

    Measured: pyarrow.dataset and DuckDB read 500 points no faster than file after file.
    """
    tables = map(contents.read_table, paths)
    frame: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
    return frame


def read_columns(points: Sequence[PointRecord], name: str, columns: list[str]) -> pd.DataFrame:
    """Some columns of a table that every point has. Raises `UserError` as `read_frame` does."""
    tables = [contents.read_table(p.dir / f"{name}.parquet", columns) for p in points]
    frame: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
    return frame


def columns_of(point: PointRecord, kind: str, names: Sequence[str]) -> pa.Table:
    """Columns of one of a point's merged files; those that an older kvx lacked are null.

    Raises `UserError` naming a file that cannot be read.
    """
    return columns_in(layout.merged(point.dir, kind), contents.SCHEMAS[kind], names)


def columns_in(path: Path, schema: pa.Schema, names: Sequence[str]) -> pa.Table:
    """The columns `names` of a Parquet file; those that it lacks are null, of the schema's type.

    Raises `UserError` naming a file that cannot be read.
    """
    found = contents.read_table(path, names)
    lacking = [name for name in names if name not in found.column_names]
    for name in lacking:
        found = found.append_column(name, pa.nulls(found.num_rows, schema.field(name).type))
    return found.select(list(names))


def requests_of(points: Sequence[PointRecord], names: Sequence[str] = ()) -> pd.DataFrame:
    """Every request of points that have answers, all columns or `names`.

    Columns that an older kvx lacked are null.
    """
    if names:
        tables = [columns_of(point, REQUESTS, names) for point in points]
        found: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()
        return found
    frame = read_frame([layout.merged(p.dir, REQUESTS) for p in points])
    return frame.reindex(columns=schemas.REQUESTS.names)


def latency_of(points: Sequence[PointRecord]) -> pd.DataFrame:
    """Every measurement of requests that ran alone."""
    return _merged(points, LATENCY, schemas.LATENCY)


def fidelity_of(points: Sequence[PointRecord]) -> pd.DataFrame:
    """Every request that was compared with the full cache."""
    return _merged(points, FIDELITY, fidelity_schemas.FIDELITY)


def events_of(points: Sequence[PointRecord]) -> pd.DataFrame:
    """What controllers did, by point, request and index."""
    return _merged(points, EVENTS, schemas.EVENTS)


def _merged(points: Sequence[PointRecord], kind: str, schema: pa.Schema) -> pd.DataFrame:
    """A table of the points that have it; columns that an older kvx lacked are null."""
    paths = [layout.merged(p.dir, kind) for p in points if p.done.holds(kind)]
    frame = read_frame(paths) if paths else schema.empty_table().to_pandas()
    return frame.reindex(columns=schema.names)


def n_requests(points: Sequence[PointRecord]) -> int:
    return sum(int(point.info["manifest"]["n_requests"]) for point in points)


def in_chunks(points: Sequence[PointRecord]) -> list[list[PointRecord]]:
    """`points` in their order, at most `MOST_REQUESTS` requests together, or a single point."""
    chunks: list[list[PointRecord]] = []
    for point in points:
        if not chunks or n_requests([*chunks[-1], point]) > MOST_REQUESTS:
            chunks.append([])
        chunks[-1].append(point)
    return chunks


def finished_points(experiment: Path) -> list[PointRecord]:
    """The experiment's complete points that have answers, sorted by id.

    Others are left out and named in the log. Raises `UserError` if no point is left.
    """
    left_out, records = unfinished_points(experiment), answered_points(experiment)
    if left_out:
        log.warning(
            "%d of %d points are unfinished, failed or without answers, and left out: %s",
            len(left_out),
            len(left_out) + len(records),
            ", ".join(list(left_out)[:5]),
        )
    for name in ("latencies", "fidelity"):
        if not records and f"it has no answers, only {name}" in left_out.values():
            raise UserError(
                f"{experiment}: no finished point has answers, only {name}; run with "
                "measure=quality"
            )
    if not records:
        raise UserError(f"{experiment}: no finished point; run kvx.run with the same arguments")
    return records


def answered_points(experiment: Path) -> list[PointRecord]:
    """`finished_points` without a log or an error; may be empty."""
    found = ((folder, state) for folder, state in _states(experiment) if isinstance(state, Done))
    return [_record(folder, done) for folder, done in found]


def compared_points(experiment: Path) -> list[PointRecord]:
    """The complete points that were compared with the full cache, with answers or without."""
    records = []
    for folder, state in _states(experiment):
        done = layout.read_done(folder) if state == FIDELITY_ONLY else state
        if isinstance(done, Done) and done.holds(FIDELITY):
            records.append(_record(folder, done))
    return records


def _record(folder: Path, done: Done) -> PointRecord:
    info = json.loads((folder / "point.json").read_text())
    if info["budget_kind"] == "ratio":  # older runs rounded the label to six digits
        info["budget_label"] = exact(info["budget"])
    return PointRecord(folder, info, done)


def unfinished_points(experiment: Path) -> dict[str, str]:
    """Points that no table holds though they could, and why; by id.

    Of these, points that sweep.json asks for and no run has begun.
    """
    found = {f.name: state for f, state in _states(experiment) if isinstance(state, str)}
    there = {folder.name for folder in (experiment / "points").glob("*/")}
    asked = journal.read(experiment)["points"]
    return dict(sorted((found | dict.fromkeys(asked.keys() - there, NOT_BEGUN)).items()))


def not_applicable_points(experiment: Path) -> list[dict[str, str]]:
    """Points whose press cannot be used on their model: a row of `NOT_APPLICABLE` for each."""
    rows = []
    for folder in sorted((experiment / "points").glob("*/")):
        if (reason := layout.read_not_applicable(folder)) is not None:
            info = json.loads((folder / "point.json").read_text())
            about = ("variant_id", "model", "dataset", "press", "budget_label", "controller")
            rows.append({"point_id": folder.name, **{n: str(info[n]) for n in about}})
            rows[-1]["reason"] = reason
    return rows


def _states(experiment: Path) -> Iterator[tuple[Path, Done | str]]:
    """Each point's DONE, or why no table holds the point; sorted by id."""
    for folder in sorted((experiment / "points").glob("*/")):
        if layout.read_not_applicable(folder) is not None:
            continue
        if (failed := layout.read_failed(folder)) is not None:
            yield folder, f"failed: {failed}"
        elif (done := layout.read_done(folder)) is None:
            yield folder, "unfinished"
        else:
            without = FIDELITY_ONLY if done.holds(FIDELITY) else LATENCY_ONLY
            yield folder, done if done.holds(REQUESTS) else without
