"""Turn what an engine yields into rows of the pinned schemas."""

import json
import math
from dataclasses import asdict
from datetime import datetime
from functools import cache
from typing import Any

from kvx.config.identity import is_guarded, made_with
from kvx.engines.base import BudgetProof, Fidelity, KVUse, Measurement, Ranked, Response
from kvx.guard.events import INTERVENTIONS, Guarded
from kvx.identity import provenance
from kvx.points import Request

Row = dict[str, Any]
ALONG = ("token_ids", "kl_nats", "same_top1", "logprob", "full_logprob")
OF_CACHE = (
    "entries_nominal", "entries_effective", "entries_physical", "bytes_nominal", "bytes_effective",
    "bytes_physical", "bytes_full", "compressed_share",
)  # fmt: skip


def request_row(response: Response, finished: datetime) -> Row:
    """One row of `requests`."""
    request: Request = response.request
    entry, timing, kv = request.entry, response.timing, response.kv
    reason, adapted = _marks(request, kv, response.ranked)
    measured_here = BudgetProof.MEASURED if response.budget_verified else BudgetProof.NONE
    ids = response.token_ids
    row: Row = {
        "request_id": request.id, "point_id": request.point.id, "example_id": entry.example_id,
        "cluster": entry.cluster, "bin": entry.bin, "context_tokens": entry.context_tokens,
        "prompt_tokens": entry.prompt_tokens, "compressed_tokens": entry.compressed_tokens,
        "context_tokens_cut": entry.context_tokens_cut, "max_new_tokens": request.max_new_tokens,
        "has_response": response.has_response, "budget_verified": response.budget_verified,
        "degenerate": reason is not None, "degenerate_reason": reason, "finished_at": finished,
        "text": response.text, "token_ids": ids,
        "output_tokens": response.output_tokens if ids is None else len(ids),
        "budget_proof": (response.budget_proof or measured_here).value,
        "finish_reason": response.finish_reason, "error_type": response.error_type,
        "error_message": response.error_message, "peak_memory_bytes": response.peak_memory_bytes,
        "made_with": _made_with(response), "reasoning": response.reasoning,
        "reasoning_tokens": response.reasoning_tokens,
        "opens_reasoning": response.opens_reasoning,
        "adapted": adapted,
    }  # fmt: skip
    if timing is not None:
        row |= asdict(timing)
    if kv is not None:
        row |= {f"kv_{name}": value for name, value in asdict(kv).items()}
    return row | ({} if response.guard is None else _guard_columns(response.guard))


def _marks(request: Request, kv: KVUse | None, ranked: Ranked | None) -> tuple[Any, Any]:
    """Why the press is another method here, and why it was adapted to its model; None if not."""
    effective = None if kv is None else kv.entries_effective
    reason = request.point.degenerate_reason(request.entry.compressed_tokens, effective)
    if ranked is None:
        return reason, None
    if ranked.adapted:
        return reason, ranked.reason
    return f"not the method: {ranked.reason}", None


def _guard_columns(guard: Guarded) -> Row:
    """A summary of what a controller did to a response."""
    return {
        "guard_mean_budget": guard.mean_budget, "guard_decoded_tokens": guard.decoded_tokens,
        "guard_recomputed_tokens": guard.recomputed_tokens, "guard_events": len(guard.events),
        "guard_interventions": sum(e.action in INTERVENTIONS for e in guard.events),
        "guard_ms": sum(e.milliseconds for e in guard.events), "kv_bytes_host": guard.bytes_host,
    }  # fmt: skip


def _made_with(response: Response) -> str:
    """What a response may depend on beyond its point's identity, as JSON."""
    if response.machine is not None:  # a server: our batch settings play no part
        return json.dumps({"machine": response.machine})
    config = response.request.point.config
    settings = made_with(config)
    if is_guarded(config):  # whether its prefill was shared or its own
        settings["guard.shadow"] = config.guard.shadow.name
    return json.dumps({**settings, "machine": machine()}, sort_keys=True)


def trace_row(response: Response) -> Row | None:
    """One row of `traces`, if the response has one."""
    trace = response.trace
    if trace is None:
        return None
    row: Row = {
        "request_id": response.request.id, "token_ids": trace.token_ids,
        "logprob": trace.logprob, "entropy_nats": trace.entropy_nats,
        "signals_source": trace.source, "top_logprobs": trace.top_logprobs,
        "arrival_s": trace.arrival_s, "score_evicted": trace.score_evicted,
        "prompt_kept_percent": trace.kept_percent, "prompt_context_chars": trace.context_chars,
    }  # fmt: skip
    if trace.probe is not None:
        row |= {f"probe_{name}": value for name, value in asdict(trace.probe).items()}
    return row | (trace.signals or {})


def event_rows(response: Response) -> list[Row]:
    """One row of `events` for each thing that a controller did to the response, in order."""
    request = response.request
    about = {
        "request_id": request.id,
        "point_id": request.point.id,
        "example_id": request.entry.example_id,
    }
    return [
        {
            **about,
            "index": index,
            **asdict(event),
            "hazard": _known(event.hazard),
            "probe_nats": _known(event.probe_nats),
            "tokens_dropped": len(event.dropped_ids),
        }
        for index, event in enumerate(response.guard.events if response.guard else [])
    ]


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def latency_row(measurement: Measurement, finished: datetime) -> Row:
    """One row of `latency`."""
    request, timing = measurement.request, measurement.timing
    entry = request.entry
    row: Row = {
        "request_id": request.id, "point_id": request.point.id, "example_id": entry.example_id,
        "bin": entry.bin, "repeat": measurement.repeat, "prompt_tokens": entry.prompt_tokens,
        "compressed_tokens": entry.compressed_tokens, "machine": measurement.machine or machine(),
        "warmup": request.point.config.latency.warmup, "finished_at": finished,
        "output_tokens": measurement.output_tokens, "kv_bytes_peak": measurement.kv_bytes_peak,
        "peak_memory_bytes": measurement.peak_memory_bytes,
        "others_cpu_share": measurement.others_cpu_share, "gpu_others": measurement.gpu_others,
        "error_type": measurement.error_type, "error_message": measurement.error_message,
    }  # fmt: skip
    return row if timing is None else row | asdict(timing)


def fidelity_row(fidelity: Fidelity, finished: datetime) -> Row:
    """One row of `fidelity`."""
    request, entry, kv = fidelity.request, fidelity.request.entry, fidelity.kv
    reason, adapted = _marks(request, kv, fidelity.ranked)
    row: Row = {
        "request_id": request.id, "point_id": request.point.id, "example_id": entry.example_id,
        "cluster": entry.cluster, "bin": entry.bin, "prompt_tokens": entry.prompt_tokens,
        "compressed_tokens": entry.compressed_tokens, "degenerate": reason is not None,
        "degenerate_reason": reason, "adapted": adapted, "finished_at": finished,
        "budget_proof": None if fidelity.budget_proof is None else fidelity.budget_proof.value,
        "error_type": fidelity.error_type, "error_message": fidelity.error_message,
    }  # fmt: skip
    row |= {name: getattr(fidelity, name) for name in ALONG}
    if kv is None:
        return row
    return row | {f"kv_{name}": getattr(kv, name) for name in OF_CACHE}


@cache
def machine() -> str:
    """What measured times depend on: the GPU if there is one, else CPU, cores and threads."""
    hardware = provenance.hardware()
    if "gpu" in hardware:
        return str(hardware["gpu"])
    threads = hardware.get("torch_threads", hardware["cores"])
    return f"{hardware['cpu']}, {hardware['cores']} cores, {threads} threads"
