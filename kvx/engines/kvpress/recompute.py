"""`guard.shadow=recompute`: no copy of the full KV; a raised budget prefills the prompt again."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from kvx.engines.kvpress.cache import Bucket
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.prefill import prefill
from kvx.engines.kvpress.prompt_row import PromptRow, RowPress
from kvx.engines.kvpress.shadow import FULL
from kvx.engines.kvpress.streams import RandomStream


@dataclass
class Recompute:
    """A row's prompt, from its tokens; `logits` as in `Source`.

    It is prefilled with the attention that the model has when this is made.
    """

    loaded: LoadedModel
    ids: Sequence[int]
    press: RowPress
    nominal: float
    seed: int
    logits: torch.Tensor
    bytes: int = 0  # beside the device
    attention: str = field(init=False)

    def __post_init__(self) -> None:
        self.attention = self.loaded.model.config._attn_implementation

    def bucket(self, budget: float, room: int) -> Bucket:
        """Raises what the press raises."""
        press = None
        if budget < FULL:
            press = self.press if budget == self.nominal else self.press.at(budget)
        stream = RandomStream(self.seed, self.loaded.devices)
        row = PromptRow(press, len(self.ids), stream)
        self.loaded.set_attention(self.attention)
        caches = prefill(self.loaded, self.ids, [row], room, alone=False)
        if row.error is not None:
            raise row.error
        (bucket,) = caches.buckets
        return bucket
