"""Known of a prompt before its first token: the probe, and the share that a press dropped."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from kvx.engines.base import Probe
from kvx.engines.kvpress.shadow import Scores
from kvx.guard.signals import divergence_nats


def probes(logits: torch.Tensor, reference: int | None) -> list[Probe | None]:
    """The probe of every row of `logits` [rows, tokens, vocab].

    The row `reference` has the full cache; without one, every probe is None.
    """
    if reference is None:
        return [None] * len(logits)
    full = logits[reference]
    likeliest = full.argmax(-1)
    found: list[Probe | None] = []
    for row in logits:  # one at a time: each needs a few copies of its logits
        same = (row.argmax(-1) == likeliest).tolist()
        found.append(Probe(divergence_nats(full, row).tolist(), same))
    return found


class EvictedMass:
    """Which share of its score mass a press drops, layer by layer.

    Scores are shifted so that the lowest of each head is 0, since some presses' are negative.
    """

    def __init__(self, press: Any) -> None:
        self._shares: list[torch.Tensor] = []
        self._scores = Scores(press)

    def kept(self, n_kept: int) -> None:
        """A layer is compressed: of the scores just given, the `n_kept` highest stay."""
        scores = self._scores.take()
        if scores is None or n_kept > scores.shape[-1]:
            return
        mass = scores.float() - scores.float().amin(-1, keepdim=True)
        self._shares.append(1 - mass.topk(n_kept, dim=-1).values.sum(-1) / mass.sum(-1))

    def mean(self) -> float | None:
        """Over layers and heads; None where scores were infinite or all alike, or none given."""
        if not self._shares:
            return None
        mean = torch.cat([share.flatten() for share in self._shares]).mean().item()
        return mean if math.isfinite(mean) else None


def mean_share(evicted: EvictedMass | None) -> float | None:
    return None if evicted is None else evicted.mean()


def reference_of(kept: Sequence[int], n_tokens: int) -> int | None:
    """The index of a row that keeps all of `n_tokens`, if there is one."""
    return next((i for i, n in enumerate(kept) if n == n_tokens), None)
