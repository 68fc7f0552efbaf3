"""What presses kept of the contexts, for the sample browser: a digit for each token."""

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kvx.errors import unreadable
from kvx.store import layout
from kvx.store.catalog import PointRecord

LEVELS = 9  # besides "in no head", which is 0; the highest is "in all heads"
PERCENT, CHARS = "prompt_kept_percent", "prompt_context_chars"

Kept = tuple[str, list[int]]


def kept_of(point: PointRecord, examples: Collection[str]) -> dict[str, Kept]:
    """By example: a digit for each token of the context, and how many characters each stands for.

    Nothing for points without `signals=full`, and for examples whose context was not found in the
    prompt.
    """
    path = layout.merged(point.dir, layout.TRACES)
    if not path.is_file():
        return {}
    try:
        with pq.ParquetFile(path) as file:
            if not {PERCENT, CHARS} <= set(file.schema_arrow.names):
                return {}
            table = file.read(columns=["request_id", PERCENT, CHARS])
        names = pq.read_table(
            layout.merged(point.dir, layout.REQUESTS),
            columns=["request_id", "example_id"], partitioning=None,
            filters=pc.field("example_id").isin(list(examples)),
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from None
    ids = names["request_id"].combine_chunks()
    example = dict(zip(ids.to_pylist(), names["example_id"].to_pylist(), strict=True))
    table = table.filter(pc.is_in(table["request_id"], value_set=ids))
    found = {}
    for i, request in enumerate(table["request_id"].to_pylist()):
        percent, chars = (_items(table[name][i]) for name in (PERCENT, CHARS))
        if percent is None or chars is None or len(percent) != len(chars):
            continue
        inside = chars > 0
        digits = levels(percent[inside]) + ord("0")
        found[example[request]] = digits.astype(np.uint8).tobytes().decode(), chars[inside].tolist()
    return found


def levels(percent: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shares in percent [n] as levels 0 to `LEVELS`; only 0% is level 0, only 100% the highest."""
    between = np.clip(np.rint(percent * LEVELS / 100), 1, LEVELS - 1)
    found = np.where(percent <= 0, 0, np.where(percent >= 100, LEVELS, between))
    return found.astype(np.int64)


def _items(value: pa.Scalar) -> NDArray[np.int64] | None:
    if not value.is_valid:
        return None
    found: NDArray[np.int64] = value.values.to_numpy(zero_copy_only=False).astype(np.int64)
    return found
