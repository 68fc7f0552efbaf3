"""Next-token distributions compared with the full cache's, in slices of the vocabulary."""

from dataclasses import dataclass

import torch

SLICE_LOGITS = 2**21  # of all rows, in float32 at once
LOWEST = -200.0  # nats; a token that a model rules out (-inf) counts as this


@dataclass(frozen=True)
class Compared:
    """One position of some rows against the full cache's distribution; arrays of [rows].

    `kl_nats` is KL(full || row), `logprob` the row's log-probability of the token that follows and
    `full_logprob` the full cache's, in nats; `same_top1` whether both find the same token
    likeliest.
    """

    kl_nats: list[float]
    same_top1: list[bool]
    logprob: list[float]
    full_logprob: float


@torch.inference_mode()
def compare(full: torch.Tensor, rows: torch.Tensor, token: int) -> Compared:
    """Compare logits `rows` [rows, vocab] with those of the `full` cache [vocab].

    `token` is the one that follows. Everything is computed in float32, a slice of the vocabulary
    at a time, so no copy of all logits is made; sums over slices are float64 where there is one.
    """
    wide = torch.float32 if rows.device.type == "mps" else torch.float64  # which mps lacks
    vocabulary, width = full.shape[-1], max(1, SLICE_LOGITS // (len(rows) + 1))
    slices = [slice(at, at + width) for at in range(0, vocabulary, width)]

    def normalizer(logits: torch.Tensor) -> torch.Tensor:
        parts = [logits[..., part].float().logsumexp(-1).to(wide) for part in slices]
        return torch.stack(parts, -1).logsumexp(-1)

    full_norm, norms = normalizer(full), normalizer(rows)
    kl = torch.zeros(len(rows), dtype=wide, device=rows.device)
    for part in slices:
        log_p = (full[part].float() - full_norm.float()).clamp_(min=LOWEST)
        log_q = (rows[:, part].float() - norms.float()[:, None]).clamp_(min=LOWEST)
        kl += (log_p.exp() * (log_p - log_q)).sum(-1).to(wide)
    return Compared(
        kl.clamp(min=0.0).tolist(),  # below 0 by rounding alone
        (rows.argmax(-1) == full.argmax(-1)).tolist(),
        (rows[:, token].to(wide) - norms).clamp_(min=LOWEST).tolist(),
        float((full[token].to(wide) - full_norm).clamp(min=LOWEST)),
    )
