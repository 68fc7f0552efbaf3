"""Points in chunks: few enough for memory, many enough to be computed together."""

from collections.abc import Sequence

from kvx.store.catalog import PointRecord

MOST_REQUESTS = 25_000


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
