"""Many writers' shards as one table per kind: no row twice, in the manifest's order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kvx.store import contents, layout
from kvx.store.contents import SCHEMAS
from kvx.store.layout import LATENCY, REQUESTS, TRACES


@dataclass(frozen=True)
class Answers:
    """Every request of a point and the traces of those that have one."""

    requests: pa.Table
    traces: pa.Table

    @property
    def responses(self) -> int:
        return int(pc.sum(self.requests["has_response"]).as_py() or 0)


def answers(folder: Path, request_ids: Sequence[str]) -> Answers | None:
    """The rows of `request_ids`, in that order; None if one of them is missing.

    Of a request that is there twice the first counts, the merged file before the shards, these by
    name; its trace is the one that was written with it. Raises what `contents.read` does.
    """
    place = {request_id: i for i, request_id in enumerate(request_ids)}
    rows, traces = [SCHEMAS[REQUESTS].empty_table()], [SCHEMAS[TRACES].empty_table()]
    seen: set[str] = set()
    for path in layout.files(folder, REQUESTS):
        table = contents.read(path, REQUESTS)
        new = [i for i in table["request_id"].to_pylist() if i in place and i not in seen]
        fresh = set(new)
        rows.append(_only(table, fresh))
        seen |= fresh
        if (partner := layout.traces_of(path)).exists():
            traces.append(_only(contents.read(partner, TRACES), fresh))
    if len(seen) < len(place):
        return None
    return Answers(_ordered(rows, place), _ordered(traces, place))


def latency(folder: Path, request_ids: Sequence[str]) -> pa.Table:
    """Every latency row once, by the order of `request_ids`, then by repeat."""
    place = {request_id: i for i, request_id in enumerate(request_ids)}
    tables = [contents.read(path, LATENCY) for path in layout.files(folder, LATENCY)]
    table = pa.concat_tables([SCHEMAS[LATENCY].empty_table(), *tables])
    first: dict[tuple[int, int], int] = {}
    keys = zip(table["request_id"].to_pylist(), table["repeat"].to_pylist(), strict=True)
    for i, (request_id, repeat) in enumerate(keys):
        if request_id in place:
            first.setdefault((place[request_id], repeat), i)
    return table.take(pa.array([first[key] for key in sorted(first)], pa.int64()))


def _only(table: pa.Table, ids: set[str]) -> pa.Table:
    keep: list[int] = []
    left = set(ids)
    for i, request_id in enumerate(table["request_id"].to_pylist()):
        if request_id in left:
            left.remove(request_id)
            keep.append(i)
    return table if len(keep) == len(table) else table.take(pa.array(keep, pa.int64()))


def _ordered(tables: list[pa.Table], place: dict[str, int]) -> pa.Table:
    table = pa.concat_tables(tables)
    order: list[Any] = [place[i] for i in table["request_id"].to_pylist()]
    return table.take(pa.array(sorted(range(len(order)), key=order.__getitem__), pa.int64()))
