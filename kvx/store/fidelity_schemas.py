"""Pinned Arrow schemas of the tables of fidelity, as `kvx.store.schemas` has the others."""

import pyarrow as pa

from kvx.store.schemas import BIN_STATS, F32, F64, I32, I64, REQUESTS, B, S

SERIES = (
    "variant_id", "variant", "model", "dataset", "press", "controller", "seed", "budget_kind",
    "budget_label", "budget_asked", "budget", "point_id",
)  # fmt: skip
IN_REQUESTS = (
    "request_id", "point_id", "example_id", "cluster", "bin", "prompt_tokens", "compressed_tokens",
    "degenerate", "finished_at",
)  # fmt: skip


def _optional(columns: dict[str, pa.DataType]) -> list[pa.Field]:
    return [pa.field(name, kind, nullable=True) for name, kind in columns.items()]


# one row per request compared with the full cache, along the full cache's own greedy answer
FIDELITY = pa.schema([
    *(REQUESTS.field(name) for name in IN_REQUESTS),
    *_optional({
        "token_ids": pa.list_(I32), "kl_nats": pa.list_(F32), "same_top1": pa.list_(B),
        "logprob": pa.list_(F32), "full_logprob": pa.list_(F32), "degenerate_reason": S,
        "adapted": S, "budget_proof": S, "kv_entries_nominal": F64, "kv_entries_effective": F64,
        "kv_entries_physical": F64, "kv_bytes_nominal": I64, "kv_bytes_effective": I64,
        "kv_bytes_physical": I64, "kv_bytes_full": I64, "kv_compressed_share": F64,
        "error_type": S, "error_message": S,
    }),
])  # fmt: skip

# what they come to; bin -1 is all bins together, and alone is also cut by position in the answer
FIDELITY_STATS = pa.schema([
    *(BIN_STATS.field(name) for name in (*SERIES, "bin", "bin_low_tokens", "bin_high_tokens")),
    pa.field("position_low", I32, nullable=False),
    *(
        pa.field(name, I64, nullable=False)
        for name in (
            "n_tokens", "n_prompts", "n_clusters", "n_failed", "n_degenerate", "n_adapted",
        )
    ),
    *_optional({
        "position_high": I32,
        **{
            f"{name}{end}": F64
            for name in ("kl_nats", "agreement", "perplexity_ratio", "same_answer")
            for end in ("", "_ci_low", "_ci_high")
        },
        "budget_measured": F64, "kv_bytes_mean": F64, "kv_bytes_full_mean": F64,
    }),
])  # fmt: skip
