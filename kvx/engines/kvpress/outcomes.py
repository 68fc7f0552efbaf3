"""What became of a request: the proof of its budget, its cache at the end, its failure."""

from dataclasses import replace

from kvx.engines.base import BudgetProof, KVUse, Response, kept_as_asked
from kvx.engines.kvpress.parts import press_line
from kvx.engines.kvpress.rows import Row
from kvx.errors import show_traceback
from kvx.failures import classify_error
from kvx.points import Point, Request


class BudgetContradictedError(Exception):
    """The cache does not hold what the budget asked for."""


def kv_at_end(kv: KVUse, row: Row, compressed_tokens: int) -> KVUse:
    """What a finished row's cache took at its peak: its highest budget, and what was appended."""
    per_entry = kv.bytes_physical / kv.entries_physical
    peak = kv.bytes_physical + (row.position + row.packed - compressed_tokens) * per_entry
    if row.guard is not None:
        rest = len(row.origin.rest_ids) if row.origin is not None else 0
        for budget, tokens in row.guard.longest.items():
            prompt = max(kv.bytes_physical, budget * kv.bytes_full)
            peak = max(peak, prompt + (rest + tokens) * per_entry)
    return replace(kv, bytes_peak=round(peak))


def bytes_host(row: Row) -> int:
    """What a row's shadow takes beside the device."""
    return row.origin.source.bytes if row.origin is not None and row.origin.source else 0


def prove_budget(point: Point, kv: KVUse) -> BudgetProof:
    """A budget is proved, not labelled: how it is.

    Raises `BudgetContradictedError` if the cache holds something else than was asked.
    """
    press, kept = point.config.press, kv.entries_effective
    found = kept_as_asked(press, kv.entries_nominal, kept)
    if found is None:
        raise BudgetContradictedError(
            f"press={press.name} was asked to keep {kv.entries_nominal:g} KV entries per head and "
            f"kept {kept:g}; the budget is not what its label says. If the method counts otherwise "
            "(whole chunks), set press.keeps=by_method: its points are then told by what they kept"
        )
    return found


def failure(request: Request, error: Exception) -> Response:
    """The typed failure of a request that raised."""
    show_traceback(error, request.point)
    reason = str(error).splitlines()[0] if str(error) else ""
    message = f"{type(error).__name__}: {reason}"
    kind = classify_error(message)
    if (line := press_line(error)) is not None:
        message = f"{message.rstrip(': ')} (press={request.point.config.press.name}, {line})"
    return Response(request, None, error_type=kind.value, error_message=message)
