"""Many traces end to end: what features are computed from, and ragged arrays in general."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP = 20  # likeliest tokens whose log-probs are kept
# last positions of a prompt at which compressed and full cache are compared; the very last is
# where the first token is chosen
PROBE_TOKENS = 8
# the press of full-cache traces
NO_PRESS = "none"

# per token, by name; what an API trace cannot give is nan
TOKEN_SIGNALS = (
    "logprob", "entropy_nats", "top1_prob", "top5_prob", "entropy_rest_nats", "mean_logprob",
    "rank", "repetition_count", "period", "thinking",
)  # fmt: skip
# per response, known before its first token
PREFILL = (
    "probe_kl_nats", "probe_same_top1", "score_evicted", "budget", "prompt_tokens", "kept_tokens",
    "max_new_tokens", "press",
)  # fmt: skip

Signals = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Traces:
    """`n` traces of any length.

    `starts` [n + 1]: trace i holds the tokens starts[i] to starts[i + 1]. `signals` maps
    `TOKEN_SIGNALS` to [tokens] float32 and `top_logprobs` to [tokens, 20], likeliest first.
    `prefill` maps `PREFILL` to [n] float32: the two probes to [n, 8], aligned at their last
    position; `press` to names. nan is what was not seen.
    """

    starts: NDArray[np.int64]
    signals: Signals
    prefill: Signals

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.starts)

    def take(self, rows: NDArray[Any]) -> "Traces":
        """The traces `rows` (a mask or numbers), in that order."""
        chosen = np.arange(len(self))[rows]
        lengths = self.lengths[chosen]
        tokens = np.repeat(self.starts[chosen], lengths) + positions(lengths)
        return Traces(
            starts_of(lengths),
            {name: values[tokens] for name, values in self.signals.items()},
            {name: values[chosen] for name, values in self.prefill.items()},
        )


def starts_of(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """[n + 1] cumulative starts of pieces of `lengths` [n]."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def positions(lengths: NDArray[Any]) -> NDArray[np.int64]:
    """0, 1, ... within each of the pieces laid end to end: [sum of lengths]."""
    starts = starts_of(lengths)
    return np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
