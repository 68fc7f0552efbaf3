"""What the presses of one prompt would compute again and again, computed once."""

from typing import Any

import torch
from kvpress import ExpectedAttentionPress


class SharedScores:
    """Remembers a layer's scores for presses that differ in their budget only."""

    def __init__(self) -> None:
        self._scores: dict[str, torch.Tensor] = {}

    def share(self, press: Any, key: str) -> None:
        """Let `press` ask here first; presses of the same `key` score alike."""
        score = press.score

        def remembered(*args: Any, **kwargs: Any) -> torch.Tensor:
            if key not in self._scores:
                self._scores[key] = score(*args, **kwargs)
            return self._scores[key]

        press.score = remembered

    def forget(self) -> None:
        """The next layer begins."""
        self._scores.clear()


def remember_average_rope(press: Any) -> None:
    """Let ExpectedAttention average its rotary matrices once per prompt instead of in every layer.

    They depend on the prompt's length and the rotary embedding only. The press's own function
    tells the matrix, so the results are the same bit by bit.
    """
    if not isinstance(press, ExpectedAttentionPress):
        return
    average = press.apply_avg_rope
    matrices: dict[tuple[int, int, torch.device], torch.Tensor] = {}

    def remembered(
        module: Any, mu: torch.Tensor, cov: torch.Tensor | None, q_len: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        key = (q_len, id(module.rotary_emb), mu.device)
        if key not in matrices:
            identity = torch.eye(module.head_dim, device=mu.device, dtype=mu.dtype)
            matrices[key] = average(module, identity, None, q_len)[0].T.contiguous()
        rope = matrices[key]
        mu = torch.matmul(mu, rope.T)
        if cov is not None:
            cov = torch.matmul(rope, torch.matmul(cov, rope.T))
        return mu, cov

    press.apply_avg_rope = remembered
