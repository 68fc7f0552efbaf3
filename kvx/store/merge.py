"""Many writers' shards as one table per kind: no row twice, in the manifest's order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from kvx.store import contents, layout
from kvx.store.contents import SCHEMAS
from kvx.store.layout import BESIDE, EVENTS, LATENCY, REQUESTS, TRACES


@dataclass(frozen=True)
class Answers:
    """Every request of a point, the traces of those that have one, and the events of all."""

    requests: pa.Table
    traces: pa.Table
    events: pa.Table

    @property
    def responses(self) -> int:
        return int(pc.sum(self.requests["has_response"]).as_py() or 0)


def answers(folder: Path, request_ids: Sequence[str]) -> Answers | None:
    """The rows of `request_ids`, in that order; None if one of them is missing.

    Of a request that is there twice the first counts, the merged file before the shards, these by
    name; its trace and events are those written with it. Raises what `contents.read` does.
    """
    place = {request_id: i for i, request_id in enumerate(request_ids)}
    rows = [SCHEMAS[REQUESTS].empty_table()]
    others = {kind: [SCHEMAS[kind].empty_table()] for kind in BESIDE}
    seen: set[str] = set()
    for path in layout.files(folder, REQUESTS):
        table = contents.read(path, REQUESTS)
        new = [i for i in table["request_id"].to_pylist() if i in place and i not in seen]
        fresh = set(new)
        rows.append(_only(table, fresh))
        seen |= fresh
        for kind, tables in others.items():
            if (partner := layout.beside(path, kind)).exists():
                tables.append(_only(contents.read(partner, kind), fresh))
    if len(seen) < len(place):
        return None
    traces, events = (_ordered(others[kind], place) for kind in (TRACES, EVENTS))
    return Answers(_ordered(rows, place), traces, events)


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
    """The rows of `ids`, each once: events have an index, of other kinds a request has one row."""
    ids_of = table["request_id"].to_pylist()
    indices = table["index"].to_pylist() if "index" in table.column_names else [0] * len(ids_of)
    first: dict[tuple[str, int], int] = {}
    for i, (request_id, index) in enumerate(zip(ids_of, indices, strict=True)):
        if request_id in ids:
            first.setdefault((request_id, index), i)
    keep = list(first.values())
    return table if len(keep) == len(table) else table.take(pa.array(keep, pa.int64()))


def _ordered(tables: list[pa.Table], place: dict[str, int]) -> pa.Table:
    table = pa.concat_tables(tables)
    order: list[Any] = [place[i] for i in table["request_id"].to_pylist()]
    return table.take(pa.array(sorted(range(len(order)), key=order.__getitem__), pa.int64()))
