"""Reading an experiment: its finished points, their requests, scores and failures."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from kvx.errors import UserError
from kvx.hashing import sha256_file
from kvx.store.points import request_shards

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PointRecord:
    """One finished point on disk; `info` is its point.json."""

    dir: Path
    info: dict[str, Any]

    @property
    def id(self) -> str:
        return str(self.info["id"])

    @property
    def is_full_cache(self) -> bool:
        return bool(self.info["budget_kind"] == "ratio" and self.info["budget"] == 1.0)

    @cached_property
    def done_sha256(self) -> str:
        """Identity of everything the point measured: DONE lists the checksums of its shards."""
        return sha256_file(self.dir / "DONE")

    def requests(self) -> pd.DataFrame:
        return read_frame(request_shards(self.dir))

    def manifest_dir(self, output: Path) -> Path:
        manifest = self.info["manifest"]
        return output / "data" / "processed" / str(self.info["dataset"]) / str(manifest["key"])


def read_frame(paths: Sequence[Path]) -> pd.DataFrame:
    """Several Parquet files as one frame. Raises `UserError` naming a file that cannot be read."""
    tables = []
    for path in paths:
        try:
            tables.append(pq.read_table(path))
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"{path}: cannot be read ({reason}); run the same kvx.run again to redo it"
            ) from None
    frame: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return frame


def finished_points(experiment: Path) -> list[PointRecord]:
    """The experiment's complete points, sorted by id.

    Unfinished and failed ones are left out and named in the log. Raises `UserError` if no point is
    complete.
    """
    left_out = unfinished_points(experiment)
    records = [
        PointRecord(folder, json.loads((folder / "point.json").read_text()))
        for folder in sorted((experiment / "points").glob("*/"))
        if folder.name not in left_out
    ]
    if left_out:
        log.warning(
            "%d of %d points are unfinished or failed and left out: %s",
            len(left_out), len(left_out) + len(records), ", ".join(list(left_out)[:5]),
        )  # fmt: skip
    if not records:
        raise UserError(
            f"{experiment}: no finished point; start with kvx.run and the same arguments"
        )
    return records


def unfinished_points(experiment: Path) -> dict[str, str]:
    """Points that no table holds, and why."""
    reasons = {}
    for folder in sorted((experiment / "points").glob("*/")):
        if (folder / "FAILED").exists():
            reasons[folder.name] = "failed: " + (folder / "FAILED").read_text().strip()
        elif not (folder / "DONE").is_file():
            reasons[folder.name] = "unfinished"
    return reasons
