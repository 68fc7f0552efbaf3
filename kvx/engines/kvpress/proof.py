"""Responses: the proof of a budget, the cache at its end, a failure's type and line."""

from dataclasses import replace

from kvx.config.schema import DecodingConfig
from kvx.engines.base import BudgetProof, KVUse, Response, Trace, kept_as_asked
from kvx.engines.kvpress.layers import Layers, layers_of
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.observers import TIMEOUT
from kvx.engines.kvpress.parts import own_line, press_line
from kvx.engines.kvpress.press_queries import ranked
from kvx.engines.kvpress.sequence import Row
from kvx.errors import show_traceback
from kvx.points import Point, Request
from kvx.scoring.failures import FailureType, classify_error
from kvx.text.answer import answer_of
from kvx.text.reasoning import count_tokens, split


class BudgetContradictedError(Exception):
    """The cache does not hold what the budget asked for."""


def kv_at_end(kv: KVUse, row: Row, compressed_tokens: int, layers: Layers) -> KVUse:
    """The peak of a finished row's cache: its highest budget, and what was appended."""
    compressed = kv.bytes_full * (1.0 if kv.compressed_share is None else kv.compressed_share)
    fixed = kv.bytes_full - compressed
    # windows that are compressed grow too, up to their size
    per_entry = layers.entry_bytes if layers.cached else compressed / compressed_tokens
    appended = row.position + row.packed - compressed_tokens
    grown = layers.row_bytes(compressed_tokens + appended) - layers.row_bytes(compressed_tokens)
    peak = kv.bytes_physical + appended * per_entry + grown
    if row.guard is not None:
        rest = len(row.origin.rest_ids) if row.origin is not None else 0
        for budget, tokens in row.guard.longest.items():
            prompt = max(kv.bytes_physical, budget * compressed + fixed)
            peak = max(peak, prompt + (rest + tokens) * per_entry + grown)
    return replace(kv, bytes_peak=round(peak))


def bytes_host(row: Row) -> int:
    """What a row's shadow takes beside the device's caches."""
    return row.origin.source.bytes if row.origin is not None and row.origin.source else 0


def prove_budget(point: Point, kv: KVUse) -> BudgetProof:
    """How the budget is proved by what the cache holds.

    Raises `BudgetContradictedError` if the cache holds something else.
    """
    press, kept = point.config.press, kv.entries_effective
    found = kept_as_asked(press, kv.entries_nominal, kept)
    if found is None:
        raise BudgetContradictedError(
            f"press={press.name} was asked to keep {kv.entries_nominal:g} KV entries per head and "
            f"kept {kept:g}; the budget is not what its label says. If the method counts otherwise "
            "(whole chunks), set press.keeps=by_method: its points are then named by what they kept"
        )
    return found


def response_of(
    row: Row, loaded: LoadedModel, decoding: DecodingConfig, trace: Trace | None
) -> Response:
    """The response of a finished row, whose text ends before the first stop string."""
    assert row.kv is not None
    timed_out = row.finish_reason == TIMEOUT
    text = loaded.text(row.tokens)
    # the watch may see a stop string late: the text is cut where it begins
    said = answer_of(text, row.finish_reason, decoding.until, strip_reasoning=False)
    thought = split(said.text, row.opens_reasoning).reasoning
    return Response(
        row.request,
        text=said.text,
        token_ids=row.tokens,
        finish_reason=None if timed_out else said.finish_reason,
        reasoning_tokens=count_tokens(loaded.tokenizer.encode, thought),
        opens_reasoning=row.opens_reasoning,
        error_type=FailureType.TIMEOUT.value if timed_out else None,
        error_message=f"stopped after {decoding.timeout_s:g} s" if timed_out else None,
        kv=kv_at_end(row.kv, row, row.request.entry.compressed_tokens, layers_of(loaded.model)),
        budget_verified=True,
        budget_proof=prove_budget(row.request.point, row.kv),
        trace=trace,
        guard=None if row.guard is None else row.guard.result(bytes_host(row)),
        ranked=ranked(loaded, row.request.point, row.request.entry.compressed_tokens),
    )


def failure(request: Request, error: Exception) -> Response:
    """The typed failure of a request that raised."""
    show_traceback(error, request.point)
    reason = str(error).splitlines()[0] if str(error) else ""
    message = f"{type(error).__name__}: {reason}"
    kind = classify_error(message)
    if (line := press_line(error)) is not None:
        message = f"{message.rstrip(': ')} (press={request.point.config.press.name}, {line})"
    elif request.point.controller_sources and (line := own_line(error)) is not None:
        name = request.point.config.controller.name
        message = f"{message.rstrip(': ')} (controller={name}, {line})"
    return Response(request, None, error_type=kind.value, error_message=message)
