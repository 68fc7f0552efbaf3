"""The account of cache memory: what requests will need, and what running rows hold or may claim.

Everything is computed from the prompts' lengths; nothing is found out by running out of memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvx.config.guard import Shadow
from kvx.config.press_choices import Keeps, PressNeed
from kvx.engines.kvpress.cache import SLACK
from kvx.engines.kvpress.layers import Layers
from kvx.engines.kvpress.lengths import padded
from kvx.engines.kvpress.sequence import Row
from kvx.engines.kvpress.shadow import RowShadow
from kvx.errors import UserError
from kvx.points import Point, Request


@dataclass(frozen=True)
class RowCost:
    """Bytes of one token's keys and values in layers of full attention, and of a step's logits.

    `layers` tells what a row holds beside these. `full` where every row holds its whole prompt,
    whatever its budget.
    """

    entry_bytes: int
    logits_bytes: int
    full: bool = False
    layers: Layers | None = None

    def beside(self, tokens: int) -> int:
        """Bytes of a row's windows and states. A window's buffers have room for some more."""
        return 0 if self.layers is None else self.layers.row_bytes(tokens, SLACK)

    def of(self, point: Point, request: Request) -> int:
        """Bytes a row needs at most until it ends. A guarded row may be given its whole prompt."""
        entry = request.entry
        kept = entry.compressed_tokens
        press = point.config.press
        counts = press.keeps is Keeps.asked and PressNeed.masks not in press.needs
        if not self.full and not point.guarded and counts:
            asked = point.kept_tokens(kept) + press.tolerance_tokens
            kept = min(kept, padded(asked))
        room = entry.prompt_tokens - entry.compressed_tokens
        entries = kept + room + request.max_new_tokens
        beside = self.beside(entry.prompt_tokens + request.max_new_tokens)
        return entries * self.entry_bytes + beside + self.logits_bytes


@dataclass(frozen=True)
class Account:
    """All caches together take at most `cap_bytes`.

    `shadows`: guards' copies of their prompts lie in the same memory as the caches.
    """

    cost: RowCost
    cap_bytes: int
    shadows: bool = True

    def needed(self, requests: Sequence[Request], probed: bool) -> int:
        """Bytes that requests of one prompt need at most if they share its prefill."""
        rows = sum(self.cost.of(request.point, request) for request in requests)
        return rows + self.beside(requests, probed)

    def beside(self, requests: Sequence[Request], probed: bool) -> int:
        """Bytes that requests of one prompt need beside their rows.

        That is the full cache they are compared with while the question passes, and a guard's copy
        of the prompt (less its indices, a few bytes per entry). Later a guarded row that is
        rebuilt, and so there twice for a moment, takes no more than that full cache did.
        """
        entry = requests[0].entry
        new = max(request.max_new_tokens for request in requests)
        full = entry.prompt_tokens + new if probed else 0
        copied = self.shadows and any(
            r.point.guarded and r.point.config.guard.shadow is Shadow.host for r in requests
        )
        shadow = entry.compressed_tokens if copied else 0
        windows = sum(self.cost.beside(tokens) for tokens in (full, shadow) if tokens)
        return (full + shadow) * self.cost.entry_bytes + windows

    def taken(self, rows: Sequence[Row], cache_bytes: int) -> int:
        """Bytes that running `rows` with caches of `cache_bytes` hold and may still claim."""
        held = cache_bytes + len(rows) * self.cost.logits_bytes
        guarded = [
            (row.guard.budget, row.origin)
            for row in rows
            if row.guard is not None and row.origin is not None
        ]
        claims = sum((1 - budget) * origin.n_compressed for budget, origin in guarded)
        # one row at a time is there twice, while it is rebuilt
        twice = max((b * origin.n_compressed + origin.room for b, origin in guarded), default=0)
        claimed = round((claims + twice) * self.cost.entry_bytes)
        claimed += max((self.cost.beside(o.n_compressed + o.room) for _, o in guarded), default=0)
        return held + claimed + (shadow_bytes(rows) if self.shadows else 0)

    def check(self, request: Request) -> None:
        """Raises `UserError` if one request alone is larger than the cap."""
        size = self.cost.of(request.point, request)
        if size > self.cap_bytes:
            raise UserError(
                f"engine.max_cache_gib: point {request.point.id} needs {size / 2**30:.2f} GiB for "
                f"its longest prompt, the cap is {self.cap_bytes / 2**30:.2f} GiB; raise it or use "
                "shorter contexts"
            )


def shadow_bytes(rows: Sequence[Row]) -> int:
    """What guards hold beside the caches of `rows`; a prompt that rows share counts once."""
    sources = [row.origin.source for row in rows if row.origin is not None]
    shadows = [source for source in sources if isinstance(source, RowShadow)]
    prompts = {id(shadow.prompt): shadow.prompt for shadow in shadows}
    own = sum(shadow.bytes - shadow.prompt.bytes for shadow in shadows)
    return own + sum(prompt.bytes for prompt in prompts.values())
