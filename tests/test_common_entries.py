"""Entries that all rows of a bucket begin with are kept once, and change nothing."""

from typing import Any

import pytest
import torch

from kvx.engines.kvpress.cache import SLACK, Bucket
from kvx.engines.kvpress.layers import CachedLayer

HEADS, KV_HEADS, SIZE, ROWS = 6, 2, 8, 3


def layer(window: int | None, chunked: bool = False) -> CachedLayer:
    return CachedLayer(0, None, 0, window, chunked)


def filled(kv: Any, kind: CachedLayer, room: int, alike: bool) -> Bucket:
    bucket = Bucket(ROWS, room)
    bucket.fill(kind, [kv if alike else tuple(t.clone() for t in kv) for _ in range(ROWS)])
    return bucket


def kv_bytes(bucket: Bucket) -> int:
    return bucket.bytes // (2 * KV_HEADS * SIZE * 4)  # entries


@pytest.mark.parametrize("window", [None, 10, 40])
@pytest.mark.parametrize("n_prompt", [5, 50])
@pytest.mark.parametrize("how", [{}, {"softcap": 2.0}, {"sinks": torch.linspace(-1, 1, HEADS)}])
@pytest.mark.parametrize("chunked", [False, True])
def test_rows_attend_to_common_entries_as_to_their_own(
    window: int | None, n_prompt: int, how: dict[str, Any], chunked: bool
) -> None:
    if chunked and window is None:
        pytest.skip("a chunk has a size")
    draw = torch.Generator().manual_seed(0)
    kind, room = layer(window, chunked), 3 + 2 * SLACK
    kv = tuple(torch.randn(1, KV_HEADS, n_prompt, SIZE, generator=draw) for _ in range(2))
    together, apart = (filled(kv, kind, room, alike) for alike in (True, False))
    held = n_prompt if window is None else min(n_prompt, window - 1)
    assert kv_bytes(apart) - kv_bytes(together) == (ROWS - 1) * held
    position, order = n_prompt, [0, 1, 2]
    lengths = [3] + [1] * (2 * SLACK)  # a question, then tokens one by one
    for step, n in enumerate(lengths):
        rows = len(order)
        keys, values = (torch.randn(rows, KV_HEADS, n, SIZE, generator=draw) for _ in range(2))
        query = torch.randn(rows, HEADS, n, SIZE, generator=draw)
        at = torch.arange(position, position + n).expand(rows, n)
        found = []
        for bucket in (together, apart):
            bucket.append(0, keys, values)
            found.append(bucket.attend(0, query, at, **how))
            bucket.advance(n)
        torch.testing.assert_close(*found)
        position += n
        if step in (2, 90):  # the last row takes the place of one that leaves
            for bucket in (together, apart):
                bucket.drop(0)
            order = order[1:]
    assert window is None or kv_bytes(together) <= kv_bytes(apart)


@pytest.mark.parametrize("window", [None, 10])
def test_a_row_taken_back_has_what_it_appended(window: int | None) -> None:
    draw = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 1, KV_HEADS, 12, SIZE, generator=draw)
    kv = keys, values
    new = [torch.randn(ROWS, KV_HEADS, 1, SIZE, generator=draw) for _ in range(8)]
    query = torch.randn(1, HEADS, 1, SIZE, generator=draw)
    found = []
    for alike in (True, False):
        old, again = filled(kv, layer(window), 20, alike), Bucket(1, 20)
        again.fill(layer(window), [kv])
        for tensor in new[:4]:
            old.append(0, tensor, -tensor)
            old.advance(1)
        again.continue_from(old, 2)
        for bucket, rows in ((old, ROWS), (again, 1)):
            bucket.append(0, new[5][:rows], new[6][:rows])
        found.append(again.attend(0, query, torch.tensor([[16]])))
        assert again.appended == 4
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_rows_of_which_one_differs_share_nothing() -> None:
    kv = torch.ones(1, KV_HEADS, 4, SIZE), torch.ones(1, KV_HEADS, 4, SIZE)
    other = kv[0], kv[1].clone()
    for rows in ([kv, kv, other], [other, kv, kv]):
        bucket = Bucket(ROWS, 2)
        bucket.fill(layer(None), rows)
        assert kv_bytes(bucket) == ROWS * (4 + 2)
