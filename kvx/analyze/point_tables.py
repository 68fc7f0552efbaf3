"""The columns of one point that statistics are made from, read from its Parquet files.

Rows are joined by the place of their example in the manifest, an integer; no id is compared with
another as text. What was read last is kept, up to `CACHE_BYTES`.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvx.analyze.columns import Columns, take
from kvx.analyze.score_checks import check_scores
from kvx.errors import UserError
from kvx.scoring.catastrophes import JUDGED
from kvx.store import schemas
from kvx.store.catalog import PointRecord, columns_in, columns_of
from kvx.store.layout import LATENCY, REQUESTS

CACHE_BYTES = 400 * 2**20
# the columns that statistics are made from; each table also has those that say whose rows they are
USED = {
    "requests": (
        "bin", "compressed_tokens", "has_response", "budget_verified", "degenerate", "adapted",
        "output_tokens", "kv_bytes_effective", "kv_bytes_physical", "kv_bytes_full",
        "kv_compressed_share", "context_tokens_cut", "kv_entries_nominal", "kv_entries_effective",
        "kv_bytes_nominal",
    ),
    "latency": (
        "bin", "error_type", "latency_s", "ttft_s", "tpot_s", "peak_memory_bytes", "example_id",
        "others_cpu_share", "gpu_others",
    ),
    "scores": ("bin", "metric", "primary", "higher_is_better", "score"),
    "failures": ("error_type", "has_response"),
    "catastrophes": ("bin", *JUDGED),
}  # fmt: skip
# of a request, beside each of its scores
BESIDE = ("degenerate", "output_tokens", "kv_bytes_physical")


class Manifest:
    """The places and clusters of a manifest's examples."""

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        entries = manifest["entries"]
        self.ids = pa.array([entry["example_id"] for entry in entries], pa.string())
        names: dict[str, int] = {}
        self.clusters = np.array(
            [names.setdefault(entry["cluster"], len(names)) for entry in entries], dtype=np.int64
        )

    def place(self, examples: pa.ChunkedArray) -> NDArray[np.int64] | None:
        """Of each row the place [n] of its example; None if the manifest lacks one."""
        found = pc.index_in(examples, value_set=self.ids).combine_chunks()
        if found.null_count:
            return None
        return np.asarray(found.to_numpy(zero_copy_only=False), dtype=np.int64)


class PointTables:
    """Columns of the points of one experiment, by table and point."""

    def __init__(self, manifests: Mapping[str, Mapping[str, Any]]) -> None:
        self._manifests = {key: Manifest(manifest) for key, manifest in manifests.items()}
        self._kept: OrderedDict[tuple[str, str], Columns] = OrderedDict()
        self._bytes = 0

    def of(self, table: str, point: PointRecord) -> Columns:
        """Columns of `requests`, `judged`, `latency` or `seen` (catastrophes).

        All but latencies have the examples' `place` and the `cluster` as a number; requests say
        their `kind` of failure, if any, and whether they `failed` that may be null are
        floats, nan where nothing is known, or objects.
        Raises `UserError` for a file that cannot be read or that does not belong to the manifest.
        """
        key = table, point.id
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        columns: Columns = getattr(self, f"_{table}")(point)
        self._kept[key] = columns
        self._bytes += _size(columns)
        while self._bytes > CACHE_BYTES and len(self._kept) > 1:
            self._bytes -= _size(self._kept.popitem(last=False)[1])
        return columns

    def _requests(self, point: PointRecord) -> Columns:
        found = columns_of(point, REQUESTS, ("example_id", *USED["requests"]))
        columns = self._located(point, found, USED["requests"], schemas.REQUESTS)
        failures = self._read(point, "failures")
        kind = np.full(len(columns["place"]), None, dtype=object)
        at = _places(columns["place"], failures["place"])
        if (at < 0).any():
            raise UserError(
                f"{point.dir}: failures of requests that it does not have; run kvx.score again"
            )
        kind[at] = failures["error_type"]
        failed, lost = np.zeros((2, len(kind)), dtype=bool)
        failed[at], lost[at] = True, ~failures["has_response"]
        return {**columns, "kind": kind, "failed": failed, "lost": lost}

    def _judged(self, point: PointRecord) -> Columns:
        """Scores; a request without an answer is `missing`, and has the metric's worst score.

        `pair` numbers what is compared, rows of one example and metric; it ascends.
        """
        scores, requests = self._read(point, "scores"), self.of("requests", point)
        names = sorted(set(scores["metric"]))
        code = np.zeros(len(scores["metric"]), dtype=np.int64)
        for number, name in enumerate(names):
            code[scores["metric"] == name] = number
        pair = scores["place"] * len(names) + code
        at = _places(requests["place"], scores["place"])
        check_scores(point, scores, pair, requests, at, self._ids(point))
        missing = np.isnan(scores["score"])
        worst = np.where(scores["higher_is_better"], 0.0, 1.0)
        columns = {
            **scores,
            **{name: requests[name][at] for name in (*BESIDE, "kind", "failed")},
            "missing": missing, "score": np.where(missing, worst, scores["score"]), "pair": pair,
        }  # fmt: skip
        if (np.diff(pair) > 0).all():
            return columns
        return take(columns, np.argsort(pair, kind="stable"))

    def _ids(self, point: PointRecord) -> pa.Array:
        return self._manifests[point.info["manifest"]["key"]].ids

    def _seen(self, point: PointRecord) -> Columns:
        seen, requests = self._read(point, "catastrophes"), self.of("requests", point)
        at = _places(requests["place"], seen["place"])
        failed = (seen["failure"] != None).astype(float)  # noqa: E711  element by element
        flags = {name: seen[name].astype(float) for name in JUDGED if name != "failure"}
        return {**seen, **flags, "failure": failed, "degenerate": requests["degenerate"][at]}

    def _latency(self, point: PointRecord) -> Columns:
        if not point.done.holds(LATENCY):
            empty = schemas.LATENCY.empty_table()
            return {name: _array(empty[name], False) for name in USED["latency"]}
        found = columns_of(point, LATENCY, USED["latency"])
        nullable = {name: schemas.LATENCY.field(name).nullable for name in USED["latency"]}
        return {name: _array(found[name], nullable[name]) for name in USED["latency"]}

    def _read(self, point: PointRecord, table: str) -> Columns:
        schema, names = schemas.SCORED[table], USED[table]
        found = columns_in(point.dir / f"{table}.parquet", schema, ("example_id", *names))
        return self._located(point, found, names, schema)

    def _located(
        self, point: PointRecord, found: pa.Table, names: tuple[str, ...], schema: pa.Schema
    ) -> Columns:
        manifest = self._manifests[point.info["manifest"]["key"]]
        place = manifest.place(found["example_id"])
        if place is None:
            raise UserError(
                f"{point.dir}: holds examples that its manifest does not; run kvx.score again"
            )
        columns = {name: _array(found[name], schema.field(name).nullable) for name in names}
        return {**columns, "place": place, "cluster": manifest.clusters[place]}


def _places(places: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of `wanted` is in `places`, which are distinct; -1 where it is not."""
    row = np.full(int(max(places.max(initial=-1), wanted.max(initial=-1))) + 1, -1, dtype=np.int64)
    row[places] = np.arange(len(places))
    found: NDArray[np.int64] = row[wanted]
    return found


def _array(column: pa.ChunkedArray, nullable: bool) -> NDArray[Any]:
    """Text as objects that share their strings; what may be null as floats, or objects."""
    if pa.types.is_string(column.type):
        encoded = column.combine_chunks().dictionary_encode()
        words = np.array([*encoded.dictionary.to_pylist(), None], dtype=object)
        texts: NDArray[Any] = words[encoded.indices.fill_null(len(words) - 1).to_numpy()]
        return texts
    if pa.types.is_null(column.type):
        return np.full(len(column), None, dtype=object)
    if nullable:
        column = column.cast(pa.float64()).fill_null(float("nan"))
    values: NDArray[Any] = column.to_numpy()
    return values


def _size(columns: Columns) -> int:
    return sum(column.nbytes for column in columns.values())
