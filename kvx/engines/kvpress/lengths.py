"""Which rows are similar enough in length to share buffers; knows no torch."""

from collections.abc import Sequence

# rows join a bucket if they are at most this much longer than its shortest row
PADDING_SHARE, PADDING_TOKENS = 0.05, 8


def padded(length: int) -> int:
    """The longest row that may share a bucket with one of this length."""
    return int(length * (1 + PADDING_SHARE)) + PADDING_TOKENS


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of rows in buckets of similar length, shortest first."""
    groups: list[list[int]] = []
    limit = -1
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if lengths[index] > limit:
            limit = padded(lengths[index])
            groups.append([])
        groups[-1].append(index)
    return groups
