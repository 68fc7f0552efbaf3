"""The decode loop: rows with their own cache and position, one token each per step."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kvx.config import DecodingConfig
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.rows import Prefill, Row, StepObserver


class Sampler:
    """Greedy at temperature 0, else sampling.

    Sampling is by temperature, top-k and top-p, with each row's generator.
    """

    def __init__(self, config: DecodingConfig) -> None:
        self.greedy = config.temperature == 0
        self.warpers = LogitsProcessorList()
        if not self.greedy:
            self.warpers.append(TemperatureLogitsWarper(config.temperature))
            if config.top_k > 0:
                self.warpers.append(TopKLogitsWarper(config.top_k))
            if config.top_p < 1:
                self.warpers.append(TopPLogitsWarper(config.top_p))

    def choose(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
        """Token ids [rows] from logits [rows, vocab]."""
        if self.greedy:
            return logits.argmax(-1)
        probabilities = torch.softmax(self.warpers(None, logits.float()), dim=-1).cpu()
        chosen = [
            torch.multinomial(p, 1, generator=row.generator)
            for row, p in zip(rows, probabilities, strict=True)
        ]
        return torch.cat(chosen).to(logits.device)


def decode(
    loaded: LoadedModel,
    rows: Sequence[Row],
    prefills: Sequence[Prefill],
    config: DecodingConfig,
    observers: Sequence[StepObserver],
) -> None:
    """Generate until every row has finished; rows are changed in place.

    A stop token is kept as the last of `row.tokens` (the text leaves it out) and ends the row with
    `stop`; `max_new_tokens` ends it with `length`.
    """
    sampler = Sampler(config)
    for observer in observers:
        observer.on_prefill(rows, prefills)
    active = list(rows)
    logits = torch.stack([p.logits for p in prefills])
    while active:
        tokens = sampler.choose(active, logits)
        for row, token in zip(active, tokens.tolist(), strict=True):
            row.tokens.append(token)
            if token in loaded.stop_ids:
                row.finish_reason = "stop"
            elif len(row.tokens) >= config.max_new_tokens:
                row.finish_reason = "length"
        for observer in observers:
            for action in observer.on_step(active, logits, tokens):
                action.row.finish_reason = action.row.finish_reason or action.reason
        active = [row for row in active if row.finish_reason is None]
        if active:
            logits = torch.stack([_forward(loaded, row) for row in active])


def _forward(loaded: LoadedModel, row: Row) -> torch.Tensor:
    """Logits [vocab] after the row's last token."""
    out: Any = loaded.model(
        input_ids=torch.tensor([[row.tokens[-1]]], device=loaded.device),
        past_key_values=row.cache,
        position_ids=torch.tensor([[row.position]], device=loaded.device),
    )
    row.position += 1
    logits: torch.Tensor = out.logits[0, -1]
    return logits
