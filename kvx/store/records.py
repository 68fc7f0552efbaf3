"""What an engine yields, as rows of the pinned schemas."""

import json
import math
from datetime import datetime
from functools import cache
from typing import Any

from kvx.config.identity import is_guarded, made_with
from kvx.engines.base import BudgetProof, Measurement, Response
from kvx.guard.events import INTERVENTIONS, Guarded
from kvx.identity import provenance
from kvx.points import Request

Row = dict[str, Any]
TIMES = ("ttft_s", "tpot_s", "latency_s", "prefill_s", "decode_s")


def request_row(response: Response, finished: datetime) -> Row:
    """One row of `requests`."""
    request: Request = response.request
    entry, timing, kv = request.entry, response.timing, response.kv
    measured = None if kv is None else kv.entries_effective
    reason = request.point.degenerate_reason(entry.compressed_tokens, measured)
    row: Row = {
        "request_id": request.id, "point_id": request.point.id, "example_id": entry.example_id,
        "cluster": entry.cluster, "bin": entry.bin, "context_tokens": entry.context_tokens,
        "prompt_tokens": entry.prompt_tokens, "compressed_tokens": entry.compressed_tokens,
        "context_tokens_cut": entry.context_tokens_cut, "max_new_tokens": request.max_new_tokens,
        "has_response": response.has_response, "budget_verified": response.budget_verified,
        "degenerate": reason is not None, "degenerate_reason": reason, "finished_at": finished,
        "text": response.text, "token_ids": response.token_ids,
        "output_tokens": _output_tokens(response), "budget_proof": _proof(response),
        "finish_reason": response.finish_reason, "error_type": response.error_type,
        "error_message": response.error_message, "peak_memory_bytes": response.peak_memory_bytes,
        "made_with": _made_with(response), "reasoning": response.reasoning,
        "reasoning_tokens": response.reasoning_tokens,
        "opens_reasoning": response.opens_reasoning,
    }  # fmt: skip
    if timing is not None:
        row |= {name: getattr(timing, name) for name in TIMES}
    if kv is not None:
        row |= {
            "kv_entries_nominal": kv.entries_nominal, "kv_entries_effective": kv.entries_effective,
            "kv_entries_physical": kv.entries_physical, "kv_bytes_nominal": kv.bytes_nominal,
            "kv_bytes_effective": kv.bytes_effective, "kv_bytes_physical": kv.bytes_physical,
            "kv_bytes_full": kv.bytes_full, "kv_bytes_peak": kv.bytes_peak,
        }  # fmt: skip
    return row | ({} if response.guard is None else _guard_columns(response.guard))


def _guard_columns(guard: Guarded) -> Row:
    """What a controller did to a response, summed up."""
    return {
        "guard_mean_budget": guard.mean_budget, "guard_decoded_tokens": guard.decoded_tokens,
        "guard_recomputed_tokens": guard.recomputed_tokens, "guard_events": len(guard.events),
        "guard_interventions": sum(e.action in INTERVENTIONS for e in guard.events),
        "guard_ms": sum(e.milliseconds for e in guard.events), "kv_bytes_host": guard.bytes_host,
    }  # fmt: skip


def _made_with(response: Response) -> str:
    """What a response may depend on though it does not name its point, as JSON."""
    if response.machine is not None:  # our batches are none of a server's
        return json.dumps({"machine": response.machine})
    config = response.request.point.config
    settings = made_with(config)
    if is_guarded(config):  # a prefill of its own, or what the shared one left behind
        settings["guard.shadow"] = config.guard.shadow.name
    return json.dumps({**settings, "machine": machine()}, sort_keys=True)


def _output_tokens(response: Response) -> int | None:
    return response.output_tokens if response.token_ids is None else len(response.token_ids)


def _proof(response: Response) -> str:
    measured = BudgetProof.MEASURED if response.budget_verified else BudgetProof.NONE
    return (response.budget_proof or measured).value


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
    }  # fmt: skip
    if trace.probe is not None:
        row |= {
            "probe_kl_nats": trace.probe.kl_nats, "probe_same_top1": trace.probe.same_top1,
        }  # fmt: skip
    return row | (trace.signals or {})


def event_rows(response: Response) -> list[Row]:
    """One row of `events` for each thing that a controller did to the response, in its order."""
    request = response.request
    about = {
        "request_id": request.id, "point_id": request.point.id,
        "example_id": request.entry.example_id,
    }  # fmt: skip
    return [
        {
            **about, "index": index, "token": event.token, "mode": event.mode,
            "action": event.action, "reason": event.reason, "hazard": _known(event.hazard),
            "probe_nats": _known(event.probe_nats), "budget_before": event.budget_before,
            "budget_after": event.budget_after, "n_kept": event.n_kept,
            "tokens_dropped": len(event.dropped_ids), "dropped_ids": event.dropped_ids,
            "milliseconds": event.milliseconds,
        }
        for index, event in enumerate(response.guard.events if response.guard else [])
    ]  # fmt: skip


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
    if timing is not None:
        row |= {name: getattr(timing, name) for name in TIMES}
    return row


@cache
def machine() -> str:
    """What measured times depend on: the GPU if there is one, else CPU, cores and threads."""
    hardware = provenance.hardware()
    if "gpu" in hardware:
        return str(hardware["gpu"])
    threads = hardware.get("torch_threads", hardware["cores"])
    return f"{hardware['cpu']}, {hardware['cores']} cores, {threads} threads"
