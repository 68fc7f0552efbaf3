"""Merge many writers' shards into one table per kind: no row twice, in the manifest's order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from kvx.store import contents, layout
from kvx.store.contents import SCHEMAS
from kvx.store.layout import BESIDE, EVENTS, FIDELITY, LATENCY, REQUESTS, TRACES


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

    If a request occurs twice, the first one counts: the merged file before the shards, shards by
    name. Its trace and events are those written with it. Raises what `contents.read` does.
    """
    tables = {kind: [SCHEMAS[kind].empty_table()] for kind in (REQUESTS, *BESIDE)}
    left = set(request_ids)
    for path in layout.files(folder, REQUESTS):
        table = contents.read(path, REQUESTS)
        new = left.intersection(table["request_id"].to_pylist())
        fresh = pa.array(list(new), pa.string())
        left -= new
        tables[REQUESTS].append(_first(table, fresh))
        for kind in BESIDE:
            if (partner := layout.beside(path, kind)).exists():
                index = ("index",) if kind == EVENTS else ()  # only events have several rows
                tables[kind].append(_first(contents.read(partner, kind), fresh, *index))
    if left:
        return None
    whole = {kind: _ordered(pa.concat_tables(some), request_ids) for kind, some in tables.items()}
    return Answers(whole[REQUESTS], whole[TRACES], whole[EVENTS])


def latency(folder: Path, request_ids: Sequence[str]) -> pa.Table:
    """Every latency row once, in the order of `request_ids`, then by repeat."""
    tables = [contents.read(path, LATENCY) for path in layout.files(folder, LATENCY)]
    table = pa.concat_tables([SCHEMAS[LATENCY].empty_table(), *tables])
    return _ordered(
        _first(table, pa.array(request_ids, pa.string()), "repeat"), request_ids, "repeat"
    )


def fidelity(folder: Path, request_ids: Sequence[str]) -> pa.Table:
    """Every row of fidelity once, in the order of `request_ids`."""
    tables = [contents.read(path, FIDELITY) for path in layout.files(folder, FIDELITY)]
    table = pa.concat_tables([SCHEMAS[FIDELITY].empty_table(), *tables])
    return _ordered(_first(table, pa.array(request_ids, pa.string())), request_ids)


def _first(table: pa.Table, ids: pa.Array, *more: str) -> pa.Table:
    """The rows of `ids`, the first of those that agree in request and the columns `more`."""
    table = table.filter(pc.is_in(table["request_id"], ids))
    first: dict[tuple[object, ...], int] = {}
    columns = [table[name].to_pylist() for name in ("request_id", *more)]
    for row, key in enumerate(zip(*columns, strict=True)):
        first.setdefault(key, row)
    return table.take(pa.array(list(first.values()), pa.int64()))


def _ordered(table: pa.Table, request_ids: Sequence[str], *then: str) -> pa.Table:
    place = pc.index_in(table["request_id"], pa.array(request_ids, pa.string()))
    keys = pa.table({"place": place, **{name: table[name] for name in then}})
    return table.take(pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names]))
