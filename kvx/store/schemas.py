"""Pinned Arrow schemas of every table.

Units live in the names; `docs/results-format.md` explains each column.
"""

import pyarrow as pa

S, I32, I64, F32, F64, B = (
    pa.string(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_(),
)  # fmt: skip


def _schema(required: dict[str, pa.DataType], optional: dict[str, pa.DataType]) -> pa.Schema:
    fields = [pa.field(n, t, nullable=False) for n, t in required.items()]
    return pa.schema(fields + [pa.field(n, t, nullable=True) for n, t in optional.items()])


EXAMPLES = _schema(
    {
        "example_id": S,
        "context": S,
        "question": S,
        "answers": pa.list_(S),
        "cluster": S,
        "meta_json": S,
    },
    {},
)
# only for data whose rows have their own settings, so other manifests keep their file
EXAMPLE_SETTINGS = {"answer_prefix": S, "max_new_tokens": I32, "formatted": B}
EXAMPLES_WITH_SETTINGS = pa.schema(
    [*EXAMPLES, *(pa.field(n, t, nullable=True) for n, t in EXAMPLE_SETTINGS.items())]
)

# one row per request: what was asked, answered and measured
REQUESTS = _schema(
    {
        "request_id": S, "point_id": S, "example_id": S, "cluster": S, "bin": I32,
        "context_tokens": I32, "prompt_tokens": I32, "compressed_tokens": I32,
        "has_response": B, "budget_verified": B, "degenerate": B,
        "finished_at": pa.timestamp("us", tz="UTC"),
    },
    {
        "text": S, "token_ids": pa.list_(I32), "output_tokens": I32, "finish_reason": S,
        "error_type": S, "error_message": S, "degenerate_reason": S, "adapted": S,
        "budget_proof": S,
        "made_with": S, "context_tokens_cut": I32, "max_new_tokens": I32,
        "reasoning": S, "reasoning_tokens": I32, "opens_reasoning": B,
        "ttft_s": F64, "tpot_s": F64, "latency_s": F64, "prefill_s": F64, "decode_s": F64,
        "kv_entries_nominal": F64, "kv_entries_effective": F64, "kv_entries_physical": F64,
        "kv_bytes_nominal": I64, "kv_bytes_effective": I64, "kv_bytes_physical": I64,
        "kv_bytes_full": I64, "kv_bytes_peak": I64, "kv_compressed_share": F64,
        "peak_memory_bytes": I64,
        "guard_mean_budget": F64, "guard_decoded_tokens": I32, "guard_recomputed_tokens": I32,
        "guard_events": I32, "guard_interventions": I32, "guard_ms": F64, "kv_bytes_host": I64,
    },
)  # fmt: skip

# one row per decision of a controller that changed its mode or a sequence
EVENTS = _schema(
    {
        "request_id": S, "point_id": S, "example_id": S, "index": I32, "token": I32, "mode": S,
        "action": S, "reason": S, "budget_before": F64, "budget_after": F64, "n_kept": I32,
        "tokens_dropped": I32, "dropped_ids": pa.list_(I32), "milliseconds": F64,
    },
    {"hazard": F64, "probe_nats": F64},
)  # fmt: skip

# per-token signals that signals=full adds
SIGNALS = {
    "top1_prob": F32, "top5_prob": F32, "entropy_rest_nats": F32, "entropy_change_nats": F32,
    "mean_logprob": F32, "margin": F32, "rank": I32, "repetition_count": I32, "period": I32,
    "thinking": B,
}  # fmt: skip

# one row per response: per-token signals as lists of output_tokens items
TRACES = _schema(
    {
        "request_id": S, "token_ids": pa.list_(I32), "logprob": pa.list_(F32),
        "entropy_nats": pa.list_(F32), "signals_source": S,
        "top_logprobs": pa.list_(pa.list_(F32)), "arrival_s": pa.list_(F32),
    },
    {
        **{name: pa.list_(kind) for name, kind in SIGNALS.items()},
        "probe_kl_nats": pa.list_(F32), "probe_same_top1": pa.list_(B), "score_evicted": F32,
        "prompt_kept_percent": pa.list_(pa.uint8()), "prompt_context_chars": pa.list_(I32),
    },
)  # fmt: skip

# one row per measurement: a request that ran alone, for its times and memory
LATENCY = _schema(
    {
        "request_id": S, "point_id": S, "example_id": S, "bin": I32, "repeat": I32,
        "prompt_tokens": I32, "compressed_tokens": I32, "warmup": I32, "machine": S,
        "finished_at": pa.timestamp("us", tz="UTC"),
    },
    {
        "ttft_s": F64, "tpot_s": F64, "latency_s": F64, "prefill_s": F64, "decode_s": F64,
        "output_tokens": I32, "kv_bytes_peak": I64, "peak_memory_bytes": I64,
        "others_cpu_share": F64, "gpu_others": I32, "error_type": S, "error_message": S,
    },
)  # fmt: skip

SCORES = _schema(
    {
        "request_id": S, "point_id": S, "example_id": S, "cluster": S, "bin": I32, "metric": S,
        "primary": B, "higher_is_better": B,
    },
    {
        "score": F64, "prediction_normalized": S, "reference_normalized": S,
        "reasoning_tokens": I32,
    },
)  # fmt: skip

FAILURES = _schema(
    {
        "request_id": S, "point_id": S, "example_id": S, "bin": I32, "error_type": S,
        "has_response": B,
    },
    {"message": S},
)  # fmt: skip

# one row per response, judged alone; tokens are words where `unit` says so
CATASTROPHES = _schema(
    {
        "request_id": S, "point_id": S, "example_id": S, "cluster": S, "bin": I32,
        "n_tokens": I32, "unit": S, "looping": B, "cap_reached": B,
    },
    {
        "loop_onset": I32, "loop_rule": S, "loop_period": I32, "instruction_kept": B,
        "question_recall": F64, "score": F64, "failure": S,
    },
)  # fmt: skip

# what kvx.score writes beside each point's requests, in this order
SCORED = {"catastrophes": CATASTROPHES, "failures": FAILURES, "scores": SCORES}

# columns about the point, in every analysed row
_CURVE = {
    "variant_id": S, "variant": S, "model": S, "dataset": S, "press": S, "controller": S,
    "seed": I64, "budget_kind": S,
}  # fmt: skip
_SERIES = {**_CURVE, "budget_label": S, "budget_asked": F64, "budget": F64, "point_id": S}

BIN_STATS = _schema(
    {
        **_SERIES, "bin": I32, "bin_low_tokens": I32, "bin_high_tokens": I32, "metric": S,
        "primary": B, "higher_is_better": B, "n": I64, "n_missing": I64, "n_clusters": I64,
        "n_requests": I64, "n_responses": I64, "n_failures": I64, "n_truncated": I64,
        "n_degenerate": I64, "budget_verified": B, "n_latency": I64, "n_latency_failed": I64,
    },
    {
        "mean": F64, "sd": F64, "ci_low": F64, "ci_high": F64, "ci_method": S,
        "complete_mean": F64, "complete_ci_low": F64, "complete_ci_high": F64,
        "failure_rate": F64, "failure_ci_low": F64, "failure_ci_high": F64, "truncated_rate": F64,
        "latency_p50_s": F64, "latency_p95_s": F64, "ttft_p50_s": F64, "ttft_p95_s": F64,
        "tpot_p50_s": F64, "tpot_p95_s": F64, "output_tokens_mean": F64, "kv_bytes_mean": F64,
        "kv_bytes_full_mean": F64, "budget_measured": F64, "kv_compressed_share": F64,
        "peak_memory_bytes_max": I64,
        "n_contexts_cut": I64, "n_adapted": I64, "context_tokens_cut_mean": F64,
        "latency_spread": F64, "others_cpu_share": F64, "gpu_others_max": I64,
    },
)  # fmt: skip

# paired with the full cache, example by example; bin -1 is all bins together
COMPARISONS = _schema(
    {
        **_SERIES, "twin_point_id": S, "bin": I32, "metric": S, "primary": B,
        "higher_is_better": B, "n_pairs": I64, "n_clusters": I64, "n_missing": I64,
        "n_missing_full": I64, "n_degenerate": I64,
    },
    {
        "mean": F64, "twin_mean": F64, "difference": F64, "ci_low": F64, "ci_high": F64,
        "ci_method": S, "p": F64, "p_method": S, "p_holm": F64, "p_bh": F64,
        "interaction_p": F64, "interaction_p_bh": F64, "complete_pairs": I64,
        "complete_difference": F64, "complete_ci_low": F64, "complete_ci_high": F64,
        "n_lost": I64, "n_won": I64, "mcnemar_p": F64, "failure_rate_difference": F64,
        "difference_from_failures": F64, "difference_from_truncated": F64, "baseline_floor": B,
    },
)  # fmt: skip

# a benchmark's average over its tasks; `difference` is that to the full cache
TASK_MEANS = _schema(
    {
        "benchmark_id": S, "benchmark": S, "model": S, "press": S, "controller": S, "seed": I64,
        "budget_kind": S, "budget_label": S, "budget_asked": F64, "budget": F64, "n_tasks": I64,
        "n_missing_tasks": I64, "tasks": pa.list_(S), "task_means": pa.list_(F64), "n": I64,
        "n_degenerate": I64,
    },
    {
        "mean": F64, "ci_low": F64, "ci_high": F64, "difference": F64, "difference_ci_low": F64,
        "difference_ci_high": F64,
        "categories": pa.list_(S), "category_mean": F64, "category_ci_low": F64,
        "category_ci_high": F64,
    },
)  # fmt: skip

# press against press where the measured budgets are the same; bin -1 is all bins together
PRESS_PAIRS = _schema(
    {
        "variant_id": S, "variant": S, "model": S, "dataset": S, "seed": I64, "budget_by": S,
        "point_a": S, "point_b": S, "press_a": S, "press_b": S, "label_a": S, "label_b": S,
        "budget_a": F64, "budget_b": F64, "kv_bytes_a": F64, "kv_bytes_b": F64, "bin": I32,
        "metric": S, "higher_is_better": B, "n_pairs": I64, "n_clusters": I64, "n_missing": I64,
        "n_degenerate": I64, "n_a_better": I64, "n_b_better": I64, "method": S,
    },
    {
        "mean_a": F64, "mean_b": F64, "difference": F64, "ci_low": F64, "ci_high": F64, "p": F64,
        "p_holm": F64, "p_bh": F64,
    },
)  # fmt: skip

# whether a point loses at most a margin against the full cache; bin -1 is all bins together
EQUIVALENCE = _schema(
    {
        **_SERIES, "twin_point_id": S, "bin": I32, "metric": S, "higher_is_better": B,
        "margin": F64, "n_pairs": I64, "n_clusters": I64, "n_missing": I64, "n_missing_full": I64,
        "method": S,
    },
    {
        "loss": F64, "loss_upper": F64, "p": F64, "p_holm": F64, "holds": B, "discordance": F64,
        "detectable": F64, "n_for_margin": I64,
    },
)  # fmt: skip

# presses ranked at one budget, over one variant or over several
LEADERS = _schema(
    {
        "scope": S, "budget_by": S, "budget_label": S, "press": S, "metric": S, "rank": I64,
        "rank_low": I64, "rank_high": I64, "n_presses": I64, "n_variants": I64, "n_pairs": I64,
        "n_clusters": I64, "n_missing": I64, "n_degenerate": I64, "leader": S, "budget": F64,
        "kv_bytes": F64, "point_ids": pa.list_(S), "method": S,
    },
    {
        "mean": F64, "full_mean": F64, "difference": F64, "ci_low": F64, "ci_high": F64, "p": F64,
        "p_holm": F64,
    },
)  # fmt: skip

# right answers for the memory, tokens and seconds they took; bin -1 is all bins together
GOODPUT = _schema(
    {**_SERIES, "bin": I32, "metric": S, "n": I64, "n_clusters": I64, "n_inflation": I64},
    {
        "twin_point_id": S, "correct_per_s": F64,
        **{
            f"{name}{end}": F64
            for name in ("correct_ended", "correct_per_gib", "tokens_per_correct", "inflation")
            for end in ("", "_ci_low", "_ci_high")
        },
        "inflation_p": F64, "inflation_p_holm": F64,
    },
)  # fmt: skip

# seeds as samples of one configuration, for each k; bin -1 is all bins together
SAMPLES = _schema(
    {
        "variant_id": S, "variant": S, "model": S, "dataset": S, "press": S, "controller": S,
        "budget_kind": S, "budget_label": S, "budget_asked": F64, "budget": F64, "bin": I32,
        "metric": S, "temperature": F64, "k": I64, "n_samples": I64, "n_prompts": I64,
        "n_clusters": I64, "n_missing": I64, "point_ids": pa.list_(S), "ci_method": S,
    },
    {
        "pass_at_k": F64, "ci_low": F64, "ci_high": F64, "twin_pass_at_k": F64, "difference": F64,
        "difference_ci_low": F64, "difference_ci_high": F64, "p": F64, "p_holm": F64,
        "variance_between": F64, "variance_within": F64, "alike": F64, "n_missing_full": I64,
    },
)  # fmt: skip

# full-cache points that differ only in how sums are rounded; bin -1 is all bins together
NUMERICS = _schema(
    {
        "variant_a": S, "variant_b": S, "point_a": S, "point_b": S, "seed": I64, "differs_in": S,
        "bin": I32, "metric": S, "n_pairs": I64, "n_clusters": I64, "n_differ": I64,
    },
    {"difference": F64, "ci_low": F64, "ci_high": F64, "p": F64, "floor": F64},
)  # fmt: skip

TRANSITIONS = _schema(
    {
        **_CURVE, "metric": S, "n_budgets": I64, "n_boot": I64, "n_clusters": I64,
        "n_degenerate": I64, "n_steps": I64,
    },
    {
        "transition_budget": F64, "transition_label": S, "transition_above_label": S,
        "transition_drop": F64, "transition_p": F64, "shape": S, "classic_budget": F64,
        "classic_label": S, "classic_above_label": S, "classic_drop": F64, "classic_support": F64,
        "classic_support_any": F64, "lowest_label": S,
        "lowest_difference": F64, "zone_labels": pa.list_(S), "zone_reasons": pa.list_(S),
    },
)  # fmt: skip

# per curve and bin; bin -1 is all bins together, and alone has what concerns the length
DOSE_RESPONSE = _schema(
    {
        **_CURVE, "bin": I32, "bin_low_tokens": I32, "bin_high_tokens": I32, "metric": S,
        "n_budgets": I64, "n": I64, "n_clusters": I64, "n_degenerate": I64, "lowest_budget": F64,
        "highest_budget": F64, "lowest_label": S, "highest_label": S, "b50_state": S,
        "b95_state": S,
    },
    {
        "guess": F64, "lapse": F64, "midpoint": F64, "width": F64, "overdispersion": F64,
        "b50": F64, "b50_ci_low": F64, "b50_ci_high": F64, "b50_isotonic": F64,
        "b95": F64, "b95_ci_low": F64, "b95_ci_high": F64, "b95_isotonic": F64,
        **{
            f"{prefix}area{name}": F64
            for prefix in ("", "bytes_")
            for name in ("", "_full", "_difference", "_ci_low", "_ci_high", "_p")
        },
        "shift_per_doubling": F64, "shift_ci_low": F64, "shift_ci_high": F64, "shift_p": F64,
        "length_p": F64, "length_p_holm": F64,
    },
)  # fmt: skip

# per kind of catastrophe, beside the full cache; bin -1 is all bins together
CATASTROPHE_STATS = _schema(
    {
        **_SERIES, "bin": I32, "kind": S, "n": I64, "n_pairs": I64, "n_clusters": I64,
        "n_excess": I64, "n_cured": I64, "n_degenerate": I64,
    },
    {
        "twin_point_id": S, "rate": F64, "ci_low": F64, "ci_high": F64, "ci_method": S,
        "twin_rate": F64, "excess": F64, "excess_ci_low": F64, "excess_ci_high": F64,
        "excess_ci_method": S, "excess_p": F64, "excess_p_bh": F64, "mcnemar_p": F64,
    },
)  # fmt: skip

# what controllers did in live runs: one row per guarded point and figure
GUARD_STATS = _schema(
    {**_SERIES, "figure": S, "n": I64, "n_clusters": I64, "n_degenerate": I64},
    {
        "kind": S, "unguarded_point_id": S, "count": I64, "value": F64, "ci_low": F64,
        "ci_high": F64, "ci_method": S,
    },
)  # fmt: skip

# every controller over all its points; `versus`: compared with another controller
CONTROLLER_STATS = _schema(
    {"group": S, "controller": S, "figure": S, "n": I64, "n_clusters": I64},
    {
        "versus": S, "kind": S, "count": I64, "value": F64, "ci_low": F64, "ci_high": F64,
        "ci_method": S,
    },
)  # fmt: skip

# controllers replayed over recorded traces; what they prevent is an upper bound
SIMULATION = _schema(
    {
        "role": S, "controller": S, "family": S, "group": S, "n_traces": I64, "n_prompts": I64,
        "n_catastrophes": I64, "n_with_onset": I64, "n_preventable": I64, "n_instant": I64,
        "on_front": B,
    },
    {
        "threshold": F64,
        **{
            f"{name}{end}": F64
            for name in (
                "prevented", "prevented_of_preventable", "prevented_of_instant",
                "prevented_of_loops", "forecast", "false_trigger_rate",
                "false_trigger_rate_calm", "trigger_rate", "mean_budget",
                "dropped_per_1000_tokens",
            )
            for end in ("", "_ci_low", "_ci_high")
        },
        "lead_median_tokens": F64,
    },
)  # fmt: skip

# figures of the hazard model, each with its interval; `n` counts what `unit` says
EVALUATION = _schema(
    {
        "analysis": S, "name": S, "metric": S, "unit": S, "n": I64, "n_positive": I64,
        "n_prompts": I64,
    },
    {"value": F64, "ci_low": F64, "ci_high": F64},
)  # fmt: skip

# one row per trace: hazards by a model that was not trained on its prompt
PREDICTIONS = _schema(
    {
        "request_id": S, "prompt": S, "fold": I32, "part": S, "role": S,
        "hazard": pa.list_(F32), "threshold_conservative": F64, "threshold_balanced": F64,
        "threshold_aggressive": F64,
    },
    {
        "onset": I32, "gate_conservative_nats": F64, "gate_balanced_nats": F64,
        "gate_aggressive_nats": F64,
    },
)  # fmt: skip
