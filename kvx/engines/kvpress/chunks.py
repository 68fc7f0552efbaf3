"""Which requests of an example are prefilled together, so that their caches stay below the cap."""

from collections.abc import Sequence
from dataclasses import dataclass

from kvx.data.example import Example
from kvx.engines.kvpress.account import Account
from kvx.points import Request


@dataclass(frozen=True)
class Chunk:
    """Requests of one example that share a prefill; `alone` is a single one that cannot."""

    example: Example
    requests: tuple[Request, ...]
    bytes: int
    alone: bool = False


def chunks(
    example: Example, requests: Sequence[Request], account: Account, probed: bool = False
) -> list[Chunk]:
    """Requests of `example` in as few prefills as the cap allows.

    Rows of similar length stay together. A row larger than the cap is a chunk of its own. `probed`
    requests are compared with a full cache, which each prefill then holds too.
    """
    cost = account.cost
    found: list[Chunk] = []
    group: list[Request] = []
    beside = account.beside(requests, probed)
    used = beside
    for request in sorted(requests, key=lambda r: cost.of(r.point, r)):
        size = cost.of(request.point, request)
        if group and used + size > account.cap_bytes:
            found.append(Chunk(example, tuple(group), used))
            group, used = [], beside
        group.append(request)
        used += size
    if group:
        found.append(Chunk(example, tuple(group), used))
    return found
