"""Made-up traces: random ones, and ones whose signals drift before their onset."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kvx.guard.trace_arrays import PROBE_TOKENS, TOKEN_SIGNALS, TOP, Traces, starts_of
from kvx.learning.labels import targets
from kvx.train.trace_data import REPEATED, Data

PRESSES = ("none", "snapkv", "knorm")
DELAY = 20  # tokens from the onset of a loop to its detection


def random_traces(lengths: list[int], seed: int) -> Traces:
    """Signals of any size, some of them missing, with stretches that repeat."""
    rng = np.random.default_rng(seed)
    n, tokens = len(lengths), int(sum(lengths))
    signals = {
        name: (rng.gamma(1.0, 3.0, tokens) * rng.choice([-1, 1, 40])).astype(np.float32)
        for name in TOKEN_SIGNALS
    }
    top = -np.sort(rng.gamma(1.0, 5.0, (tokens, TOP)), axis=1).astype(np.float32)
    signals["top_logprobs"] = np.where(rng.random((tokens, TOP)) < 0.02, np.nan, top).astype("f4")
    kl = rng.gamma(1.0, 2.0, (n, PROBE_TOKENS)).astype(np.float32)
    prefill = {
        "probe_kl_nats": np.where(rng.random((n, 1)) < 0.3, np.nan, kl).astype(np.float32),
        "probe_same_top1": rng.integers(0, 2, (n, PROBE_TOKENS)).astype(np.float32),
        "score_evicted": rng.random(n).astype(np.float32),
        "budget": rng.choice([1.0, 0.5, 0.2], n).astype(np.float32),
        "prompt_tokens": rng.integers(1, 5000, n).astype(np.float32),
        "kept_tokens": rng.integers(1, 5000, n).astype(np.float32),
        "max_new_tokens": rng.integers(1, 300, n).astype(np.float32),
        "press": rng.choice(np.array(PRESSES, dtype=object), n),
    }
    return Traces(starts_of(np.array(lengths)), signals, prefill)


def drifting_data(n_prompts: int, seed: int = 0, drift: float = 1.5) -> Data:
    """Three responses for each prompt, one with the full cache; a third of the others derail.

    Before an onset the entropy rises by `drift` standard deviations for 24 tokens.
    """
    rng = np.random.default_rng(seed)
    rows, lengths, onsets = [], [], []
    for prompt in range(n_prompts):
        for press in PRESSES:
            derails = press != "none" and rng.random() < 0.33
            length = 80 if derails else int(rng.integers(30, 81))
            first = rng.integers(1, 60) if rng.random() < 0.8 else rng.integers(0, 5)
            onset = float(first) if derails else np.nan
            rows.append(
                {
                    "request_id": f"{press}/{prompt}", "point_id": press,
                    "prompt": f"d{prompt % 2}/p{prompt:03d}", "dataset": f"d{prompt % 2}",
                    "model": "m", "press": press, "method": press, "paired": True,
                    "budget": 1.0 if press == "none" else 0.2, "budget_kind": "ratio",
                    "budget_asked": 1.0 if press == "none" else 0.2,
                    "budget_label": "1" if press == "none" else "0.2",
                    "full_cache": press == "none", "degenerate": False, "capped": length == 80,
                    "looping": derails, "onset": onset, "detected": onset + DELAY,
                    "unplaced": False, "excess": derails,
                }
            )  # fmt: skip
            lengths.append(length)
            onsets.append(onset)
    traces = random_traces(lengths, seed)
    frame = pd.DataFrame(rows)
    entropy = rng.normal(2.0, 0.7, sum(lengths))
    for start, onset in zip(traces.starts[:-1], onsets, strict=True):
        if not np.isnan(onset):
            low = start + max(0, int(onset) - 24)
            entropy[low : start + int(onset)] += drift * 0.7
    probe = np.where(np.array(onsets) <= 4, 4.0, 0.5)[:, None] * rng.gamma(4, 0.3, (len(rows), 8))
    prefill = {
        **traces.prefill,
        "probe_kl_nats": probe.astype(np.float32),
        "budget": frame["budget"].to_numpy(np.float32),
        "press": frame["press"].to_numpy(dtype=object),
        "max_new_tokens": np.full(len(rows), 80, np.float32),
    }
    signals = {
        **traces.signals,
        "entropy_nats": np.maximum(entropy, 0).astype(np.float32),
        REPEATED: rng.random(sum(lengths)).astype(np.float32),
    }
    about = targets(frame["onset"], frame["unplaced"], frame["excess"], excess_only=True)
    return Data(frame, Traces(traces.starts, signals, prefill), about)


def steps(traces: Traces, row: int) -> list[dict[str, NDArray[np.float32]]]:
    """The signals of one trace, token by token, each for a single row."""
    tokens = range(traces.starts[row], traces.starts[row + 1])
    return [{name: v[t : t + 1] for name, v in traces.signals.items()} for t in tokens]


def prefill_of(traces: Traces, rows: list[int]) -> dict[str, NDArray[np.float32]]:
    return {name: values[rows] for name, values in traces.prefill.items()}
