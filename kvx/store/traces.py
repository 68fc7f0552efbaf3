"""Read traces from disk as arrays (`kvx.guard.trace_arrays`)."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kvx.guard.trace_arrays import PROBE_TOKENS, TOKEN_SIGNALS, TOP, Traces, starts_of
from kvx.store import contents, layout


class Holds(StrEnum):
    """What a trace has to learn from."""

    FULL = "full"  # every signal
    TOP20 = "top20"  # log-probs of the likeliest tokens, from a server
    LIGHT = "light"  # log-prob and entropy
    NOTHING = "nothing"  # no trace


def read_traces(folder: Path, request_ids: Sequence[str]) -> pa.Table:
    """The traces of a finished point, one row for each of `request_ids` in that order.

    A request without a trace has a row of nulls. Raises `UserError` if the file cannot be read.
    """
    path = layout.merged(folder, layout.TRACES)
    if not path.is_file():
        return pa.table({"request_id": pa.array(request_ids, pa.string())})
    table = contents.read_table(path)
    place = pc.index_in(pa.array(request_ids, pa.string()), table["request_id"].combine_chunks())
    return table.take(place)


def holds(table: pa.Table) -> list[Holds]:
    """What each row of `read_traces` holds."""
    n = table.num_rows
    names = ("entropy_nats", "top1_prob", "top_logprobs", "signals_source")
    if not set(names) <= set(table.column_names):
        return [Holds.NOTHING] * n
    length, top1, top = (_lengths(table[name]) for name in names[:3])
    source = table["signals_source"].to_pylist()
    kinds = []
    for i in range(n):
        if length[i] < 0:
            kinds.append(Holds.NOTHING)
        elif top1[i] == length[i] and top[i] == length[i]:
            kinds.append(Holds.FULL)
        elif source[i] == Holds.TOP20 and top[i] == length[i]:
            kinds.append(Holds.TOP20)
        else:
            kinds.append(Holds.LIGHT)
    return kinds


def to_traces(table: pa.Table, prefill: Mapping[str, NDArray[Any]]) -> Traces:
    """The rows of `read_traces` that have a trace, as arrays.

    `prefill` has one item per row of what `requests` knows: budget, prompt_tokens, kept_tokens,
    max_new_tokens and press.
    """
    lengths = _lengths(table["entropy_nats"])
    n_tokens = int(lengths.sum())
    signals = {}
    for name in TOKEN_SIGNALS:
        values = np.full(n_tokens, np.nan, np.float32)
        if name in table.column_names:
            whole = _lengths(table[name]) == lengths
            values[np.repeat(whole, lengths)] = _flat(table[name].filter(pa.array(whole)))
        signals[name] = values
    signals["top_logprobs"] = _top(table["top_logprobs"], lengths)
    return Traces(
        starts_of(lengths),
        signals,
        {
            **prefill,
            "probe_kl_nats": _last(table, "probe_kl_nats"),
            "probe_same_top1": _last(table, "probe_same_top1"),
            "score_evicted": _scalar(table, "score_evicted"),
        },
    )


def joined(parts: Sequence[Traces]) -> Traces:
    """Several sets of traces as one."""
    return Traces(
        starts_of(np.concatenate([part.lengths for part in parts])),
        {n: np.concatenate([p.signals[n] for p in parts]) for n in parts[0].signals},
        {n: np.concatenate([p.prefill[n] for p in parts]) for n in parts[0].prefill},
    )


def _lengths(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Items of each list; -1 for a null."""
    if pa.types.is_null(column.type):
        return np.full(len(column), -1)
    found: NDArray[np.int64] = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
    return found.astype(np.int64)


def _flat(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """The items of a column of lists, nulls as nan."""
    if not len(column):
        return np.zeros(0, np.float32)
    items = pc.cast(pc.list_flatten(column), pa.float32())
    found: NDArray[np.float32] = items.to_numpy(zero_copy_only=False)
    return found.astype(np.float32)


def _top(column: pa.ChunkedArray, lengths: NDArray[np.int64]) -> NDArray[np.float32]:
    """[tokens, 20]; nan where a trace has none or a server gave fewer."""
    table = np.full((int(lengths.sum()), TOP), np.nan, np.float32)
    whole = _lengths(column) == lengths
    known = np.flatnonzero(np.repeat(whole, lengths))
    if len(known):
        inner = pc.list_flatten(column.filter(pa.array(whole)))
        counts = np.clip(_lengths(inner), 0, None)
        columns = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        rows, values = np.repeat(known, counts), _flat(inner)
        inside = columns < TOP
        table[rows[inside], columns[inside]] = values[inside]
    return table


def _last(table: pa.Table, name: str) -> NDArray[np.float32]:
    """The last 8 items of each list, aligned at the end: [rows, 8], nan where there are fewer."""
    found = np.full((table.num_rows, PROBE_TOKENS), np.nan, np.float32)
    if name in table.column_names:
        for row, items in enumerate(table[name].to_pylist()):
            kept = (items or [])[-PROBE_TOKENS:]
            if kept:
                found[row, -len(kept) :] = [np.nan if x is None else x for x in kept]
    return found


def _scalar(table: pa.Table, name: str) -> NDArray[np.float32]:
    if name not in table.column_names:
        return np.full(table.num_rows, np.nan, np.float32)
    column: NDArray[np.float32] = pc.cast(table[name], pa.float32()).to_numpy(zero_copy_only=False)
    return column.astype(np.float32)
