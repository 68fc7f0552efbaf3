"""Per-token signals from the logits that a decode loop already has, for all rows at once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from kvx.guard.trace_arrays import TOP

CACHED = 2**19  # logits that a CPU works on at once, so that they stay in its cache
LOWEST = -200.0  # nats below the likeliest token; logits further down count as this

# words at which a model reconsiders; the flag is one of the original KVGuard's signals
THINKING_WORDS = frozenset({
    "actually", "alternatively", "but", "check", "hmm", "however", "maybe", "mistake", "perhaps",
    "recheck", "wait",
})  # fmt: skip


@dataclass(frozen=True)
class TokenSignals:
    """One step's signals; the first axis of every array is the row, values are float32.

    Entropies and log-probs are in nats. `entropy_rest_nats` is the entropy of the distribution
    without its likeliest token; `mean_logprob` is over the whole vocabulary; `margin` is between
    the two likeliest log-probs; `rank` is the chosen token's, 0 for the likeliest.
    """

    logprob: np.ndarray
    entropy_nats: np.ndarray
    top1_prob: np.ndarray
    top5_prob: np.ndarray
    entropy_rest_nats: np.ndarray
    mean_logprob: np.ndarray
    margin: np.ndarray
    rank: np.ndarray
    top_logprobs: np.ndarray  # [rows, 20], likeliest first


@torch.inference_mode()
def token_signals(logits: torch.Tensor, tokens: torch.Tensor) -> TokenSignals:
    """Signals of `logits` [rows, vocab], any float type, that chose `tokens` [rows].

    Computed in float32 in a few passes over the logits, copied to the host once. Vocabularies of
    fewer than 20 tokens are filled up with the lowest log-prob.
    """
    size = len(logits) if logits.is_cuda else max(1, CACHED // logits.shape[1])
    parts = zip(torch.split(logits, size), torch.split(tokens, size), strict=True)
    table = torch.cat([_table(*part) for part in parts]).cpu().numpy()
    return TokenSignals(*[*table[:, :-TOP].T, table[:, -TOP:]])


def _table(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """One row of signals per row of logits, in the order of `TokenSignals`."""
    z = logits.float()
    top, ids = z.topk(min(TOP, z.shape[1]), dim=1)
    z = (z - top[:, :1]).clamp_(min=LOWEST)
    mean, chosen = z.mean(1), z.gather(1, tokens[:, None])[:, 0]
    if bool((tokens == ids[:, 0]).all()):  # greedy
        rank = torch.zeros_like(mean)
    else:
        rank = (z > chosen[:, None]).sum(1).float()
    e = z.exp()
    e.scatter_(1, ids[:, :1], 0.0)  # without the likeliest: no cancellation where it has it all
    rest = e.sum(1).clamp_(min=torch.finfo(torch.float32).tiny)
    moment = e.mul_(z).sum(1)
    log_total = torch.log1p(rest)
    top = (top - top[:, :1]).clamp_(min=LOWEST) - log_total[:, None]
    if top.shape[1] < TOP:
        top = torch.nn.functional.pad(top, (0, TOP - top.shape[1]), value=LOWEST)
    columns = [
        chosen - log_total,
        log_total - moment / (1 + rest),
        torch.exp(-log_total),
        top[:, :5].exp().sum(1),
        (rest.log() - moment / rest).clamp_(min=0.0),
        mean - log_total,
        top[:, 0] - top[:, 1],
        rank,
    ]
    return torch.cat([torch.stack(columns, 1), top], 1)


def thinking_tokens(decode: Callable[[int], str], vocabulary: Iterable[int]) -> frozenset[int]:
    """The token ids that stand for one of `THINKING_WORDS`, with or without a space before it."""
    return frozenset(i for i in vocabulary if decode(i).strip().lower() in THINKING_WORDS)


@torch.inference_mode()
def divergence_nats(full: torch.Tensor, compressed: torch.Tensor) -> torch.Tensor:
    """KL(full || compressed) of next-token distributions, over the last axis of their logits."""
    log_p, log_q = full.float().log_softmax(-1), compressed.float().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
