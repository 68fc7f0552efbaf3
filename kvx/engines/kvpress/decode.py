"""The decode loop: running rows, one token each per step, joining and leaving at any step."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from kvx.config.schema import DecodingConfig
from kvx.engines.kvpress.cache import Bucket
from kvx.engines.kvpress.forward import forward
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.rebuild import rebuild
from kvx.engines.kvpress.sequence import Action, Prefill, Rebuild, Row, StepObserver, drop

# a row that an action stopped is not taken back; one that ended by itself may be, at the gate
GOES_ON = (None, "length", "stop")


class Sampler:
    """Greedy at temperature 0, else sampling, for each row as its own decoding or `config` says.

    Sampling is by temperature, top-k and top-p, with each row's generator.
    """

    def __init__(self, config: DecodingConfig) -> None:
        self.config = config

    def choose(self, rows: Sequence[Row], logits: torch.Tensor) -> torch.Tensor:
        """Token ids [rows] from logits [rows, vocab]. Raises `FloatingPointError`."""
        tokens = logits.argmax(-1)
        if bool(
            logits.gather(-1, tokens[:, None]).isnan().any()
        ):  # where there is one, it is "max"
            raise FloatingPointError(
                "the model's logits are NaN; its numbers may be too large for model.dtype="
                f"{str(logits.dtype).removeprefix('torch.')}"
            )
        alike: dict[tuple[float, int, float], list[int]] = {}
        for index, row in enumerate(rows):
            config = row.decoding or self.config
            if config.temperature > 0:
                key = (config.temperature, config.top_k, config.top_p)
                alike.setdefault(key, []).append(index)
        for key, indices in alike.items():
            warped = _warpers(*key)(None, logits[indices].float())
            probabilities = torch.softmax(warped, dim=-1).cpu()
            chosen = [
                torch.multinomial(p, 1, generator=rows[index].generator)
                for index, p in zip(indices, probabilities, strict=True)
            ]
            tokens[indices] = torch.cat(chosen).to(logits.device)
        return tokens


@lru_cache(maxsize=64)
def _warpers(temperature: float, top_k: int, top_p: float) -> Any:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k > 0:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


class Decoder:
    """Rows that are being generated, in buckets of similar length.

    A stop token is kept as the last of `row.tokens` (the text leaves it out) and ends the row with
    `stop`, and so does a stop string; `max_new_tokens` ends it with `length`. `config` is for rows
    without a decoding of their own. Without a `sampler`, tokens are chosen as it says.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        config: DecodingConfig,
        observers: Sequence[StepObserver],
        sampler: Sampler | None = None,
    ) -> None:
        self.loaded, self.config, self.observers = loaded, config, observers
        self._sampler = sampler or Sampler(config)
        self._buckets: list[tuple[Bucket, list[Row]]] = []

    @property
    def rows(self) -> list[Row]:
        """The running rows, in the order of the batch."""
        return [row for _, rows in self._buckets for row in rows]

    @property
    def bytes(self) -> int:
        """Allocated for the running rows' caches."""
        return sum(bucket.bytes for bucket, _ in self._buckets)

    def admit(
        self,
        buckets: Sequence[tuple[Bucket, list[Row]]],
        prefills: Sequence[Prefill],
        logits: torch.Tensor,
    ) -> list[Row]:
        """Take rows in with their first-token logits [rows, vocab], in the order of the buckets.

        Returns those that are finished already.
        """
        rows = [row for _, members in buckets for row in members]
        actions = [a for o in self.observers for a in o.on_prefill(rows, prefills)]
        self._buckets += [(bucket, list(members)) for bucket, members in buckets]
        again = {id(action.row) for action in actions if isinstance(action, Rebuild)}
        stay = [index for index, row in enumerate(rows) if id(row) not in again]
        if stay:
            self._choose([rows[i] for i in stay], logits if not again else logits[stay])
        self._carry_out(actions)
        return self._release()

    def readmit(self, buckets: Sequence[tuple[Bucket, list[Row]]]) -> None:
        """Take in rows that already have tokens; all but the last are in their bucket."""
        self._buckets += buckets

    def end(self, rows: Sequence[Row], reason: str) -> None:
        """Take running rows out before their next token."""
        for row in rows:
            row.finish_reason = reason
        self._release()

    def clear(self) -> list[Row]:
        """Give up all running rows."""
        rows, self._buckets = self.rows, []
        self._ended(rows)
        return rows

    def step(self) -> list[Row]:
        """One token for every running row; the rows that finished with it."""
        rows = self.rows
        last = torch.tensor([[row.tokens[-1]] for row in rows], device=self.loaded.device)
        logits = forward(self.loaded, [bucket for bucket, _ in self._buckets], rows, last)
        self._choose(rows, logits[:, -1])
        return self._release()

    def _choose(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        tokens = self._sampler.choose(rows, logits)
        take(self.loaded, rows, tokens, self.config)
        self._carry_out([a for o in self.observers for a in o.on_step(rows, logits, tokens)])

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if not isinstance(action, Rebuild):
                action.row.finish_reason = action.row.finish_reason or action.reason
        stopped = {id(a.row) for a in actions if not isinstance(a, Rebuild)}
        for action in actions:
            if not isinstance(action, Rebuild) or id(action.row) in stopped:
                continue
            if action.row.finish_reason in GOES_ON:
                self._rebuild(action)

    def _rebuild(self, action: Rebuild) -> None:
        """Put the row into a bucket of its own; if it has no token left, choose its first."""
        row = action.row
        found = [(b, rows) for b, rows in self._buckets if any(r is row for r in rows)]
        ((old, rows),) = found
        slot = next(i for i, r in enumerate(rows) if r is row)
        bucket, logits = rebuild(self.loaded, row, action.change, old, slot)
        drop(old, rows, slot)
        self._buckets = [(b, members) for b, members in self._buckets if members]
        self._buckets.append((bucket, [row]))
        row.finish_reason = None
        if row.until is not None:
            row.until.rewind(len(row.tokens))
        actions = [a for o in self.observers for a in o.on_rebuilt(row, logits)]
        if logits is not None and not any(isinstance(a, Rebuild) for a in actions):
            self._choose([row], logits)
        self._carry_out(actions)

    def _release(self) -> list[Row]:
        """Take finished rows out of their buckets, and empty buckets out of memory."""
        finished: list[Row] = []
        for bucket, rows in self._buckets:
            for slot in reversed(range(len(rows))):
                if rows[slot].finish_reason is not None:
                    finished.append(rows[slot])
                    drop(bucket, rows, slot)
        self._buckets = [(bucket, rows) for bucket, rows in self._buckets if rows]
        self._ended(finished)
        return finished

    def _ended(self, rows: Sequence[Row]) -> None:
        for observer in self.observers if rows else ():
            observer.on_end(rows)


def take(
    loaded: LoadedModel, rows: Sequence[Row], tokens: torch.Tensor, config: DecodingConfig
) -> None:
    """Append each row's token and note which rows that ends."""
    for row, token in zip(rows, tokens.tolist(), strict=True):
        row.tokens.append(token)
        said = row.until is not None and row.until.push(token)
        if said or (token in loaded.stop_ids and not row.ignore_stop):
            row.finish_reason = "stop"
        elif len(row.tokens) >= (row.decoding or config).max_new_tokens:
            row.finish_reason = "length"
