"""Which rows are prefilled together and when they may join, so that caches never exceed their cap.

Everything is computed from the manifest before the run; nothing is found out by running out of
memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvx.config.schema import Keeps, PressNeed
from kvx.data.example import Example
from kvx.engines.kvpress.lengths import padded
from kvx.errors import UserError
from kvx.points import Point, Request

# a forward pass over the question takes at most so many tokens of all rows together, and so many
# pairs of one of them and an entry it sees: more are taken in several passes
QUESTION_TOKENS, QUESTION_PAIRS = 2**12, 2**24


@dataclass(frozen=True)
class RowCost:
    """Bytes of one token's keys and values in all layers, and of one row's logits at a step.

    `full` where every row holds its whole prompt, whatever its budget.
    """

    entry_bytes: int
    logits_bytes: int
    full: bool = False

    def of(self, point: Point, request: Request) -> int:
        """Bytes a row needs at most until it ends."""
        entry = request.entry
        kept = entry.compressed_tokens
        guarded = point.guarded  # may be given its whole prompt
        press = point.config.press
        counts = press.keeps is Keeps.asked and PressNeed.masks not in press.needs
        if not self.full and not guarded and counts:
            asked = point.kept_tokens(kept) + press.tolerance_tokens
            kept = min(kept, padded(asked))
        room = entry.prompt_tokens - entry.compressed_tokens
        entries = kept + room + request.max_new_tokens
        return entries * self.entry_bytes + self.logits_bytes


def question_tokens(rows: int, entries: int) -> int:
    """How many tokens of the question each of `rows` rows with `entries` may take at once."""
    return max(1, min(QUESTION_TOKENS // rows, QUESTION_PAIRS // (rows * entries)))


@dataclass(frozen=True)
class Chunk:
    """Requests of one example that share a prefill; `alone` is a single one that cannot."""

    example: Example
    requests: tuple[Request, ...]
    bytes: int
    alone: bool = False


def chunks(
    example: Example,
    requests: Sequence[Request],
    cost: RowCost,
    cap_bytes: int,
    reference: bool = False,
) -> list[Chunk]:
    """Requests of `example` in as few prefills as the cap allows.

    Rows of similar length stay together. A row larger than the cap is a chunk of its own. With a
    `reference`, each prefill also holds a full cache while the question passes.
    """
    found: list[Chunk] = []
    group: list[Request] = []
    full = requests[0].entry.prompt_tokens * cost.entry_bytes if reference else 0
    if any(r.point.guarded for r in requests):  # their shadow
        full *= 2
    used = full
    for request in sorted(requests, key=lambda r: cost.of(r.point, r)):
        size = cost.of(request.point, request)
        if group and used + size > cap_bytes:
            found.append(Chunk(example, tuple(group), used))
            group, used = [], full
        group.append(request)
        used += size
    if group:
        found.append(Chunk(example, tuple(group), used))
    return found


def check_fits(request: Request, cost: RowCost, cap_bytes: int) -> None:
    """Raises `UserError` if one request alone is larger than the cap."""
    size = cost.of(request.point, request)
    if size > cap_bytes:
        raise UserError(
            f"engine.max_cache_gib: point {request.point.id} needs {size / 2**30:.2f} GiB for its "
            f"longest prompt, the cap is {cap_bytes / 2**30:.2f} GiB; raise it or use shorter "
            "contexts"
        )
