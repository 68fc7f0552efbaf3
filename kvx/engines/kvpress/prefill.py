"""Prefill: the compressed prompt part through the model and the presses, into buckets of rows.

A press that scores and drops entries does so after a layer's attention, so what later layers
compute does not depend on it: one forward pass serves any number of points, each with its own press
compressing each layer as it passes. Other presses get a forward pass of their own.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import DynamicCache

from kvx.engines.base import KVUse
from kvx.engines.kvpress.cache import KV, Bucket
from kvx.engines.kvpress.lengths import group_by_length
from kvx.engines.kvpress.measure import clear_masks
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.parts import own_method, packs
from kvx.engines.kvpress.probe import EvictedMass
from kvx.engines.kvpress.shadow import FULL, RowShadow, Scores
from kvx.engines.kvpress.shared_scores import SharedScores, remember_average_rope
from kvx.engines.kvpress.streams import RandomStream

_ABSENT = object()


class RowPress(Protocol):
    """Makes the presses of a row."""

    def build(self) -> Any | None:
        """A new kvpress press; None where nothing is dropped."""
        ...

    def at(self, budget: float) -> "RowPress":
        """The same at another budget, a share of the prompt's entries."""
        ...

    @property
    def method_key(self) -> str | None:
        """Equal for presses with equal scores; None where no other press has them."""
        ...


@dataclass
class PromptRow:
    """One point's share of a prompt: its press, and what compression left in each layer.

    Without a press the full cache stays. A `watched` row also records the share of the score mass
    that was dropped. A `shadow` is filled during the prefill; all shadows of a prefill share one
    `PromptShadow`.
    """

    press: RowPress | None
    kept_tokens: int
    stream: RandomStream
    watched: bool = False
    evicted: EvictedMass | None = None
    shadow: RowShadow | None = None
    packs: bool = False  # whether its press moved what it kept to the first positions
    entries: list[int] = field(default_factory=list)  # per layer
    bytes: int = 0  # of keys and values, all layers
    error: Exception | None = None

    def packed(self, n_tokens: int) -> int:
        """Of `n_tokens` positions before the generated text, those that the press gave up."""
        return n_tokens - self.entries[0] if self.packs else 0


@dataclass(frozen=True)
class PromptCaches:
    """Filled buckets; `rows[b]` holds the indices of the rows in bucket b, in order.

    `hidden` is the model's last hidden state [hidden size] of the last compressed token.
    """

    buckets: list[Bucket]
    rows: list[list[int]]
    hidden: torch.Tensor

    def beside(self, other: "PromptCaches") -> "PromptCaches":
        """Both, with the rows of the `other` counted after these."""
        n = sum(len(members) for members in self.rows)
        moved = [[n + index for index in members] for members in other.rows]
        return PromptCaches(self.buckets + other.buckets, self.rows + moved, self.hidden)


def prefill(
    loaded: LoadedModel, ids: Sequence[int], rows: Sequence[PromptRow], room: int, alone: bool
) -> PromptCaches:
    """One forward pass over the token `ids` for all `rows`.

    `alone` runs a single row inside its press's own context, for presses that change the forward
    pass. A press that fails leaves its error in its row and touches no other.
    """
    groups = group_by_length([row.kept_tokens for row in rows])
    buckets = [Bucket(len(group), room) for group in groups]
    cache = DynamicCache()

    def store(layer_idx: int, compressed: Sequence[KV]) -> None:
        for row, (keys, values) in zip(rows, compressed, strict=True):
            row.entries.append(keys.shape[2])
            row.bytes += keys.numel() * keys.element_size()
            row.bytes += values.numel() * values.element_size()
        for bucket, group in zip(buckets, groups, strict=True):
            bucket.fill(layer_idx, [compressed[i] for i in group])

    clear_masks(loaded.model)
    batch = torch.tensor([list(ids)], device=loaded.device)
    if alone:
        (row,) = rows
        with row.stream.drawing(), with_head_size(loaded.model), _own_press(loaded.model, row):
            out = loaded.model.model(input_ids=batch, past_key_values=cache)
        for index, layer in enumerate(cache.layers):
            store(index, [(layer.keys, layer.values)])
            layer.keys = layer.values = None  # the bucket holds it now
    else:
        with with_head_size(loaded.model), _compressing(loaded.model, cache, rows, store):
            out = loaded.model.model(input_ids=batch, past_key_values=cache)
    hidden = out.last_hidden_state[0, -1].clone()  # a copy of one position: shadows keep it
    for row in rows:
        if row.shadow is not None:
            row.shadow.prompt.hidden = hidden
    return PromptCaches(buckets, groups, hidden)


@contextlib.contextmanager
def _own_press(model: Any, row: PromptRow) -> Iterator[None]:
    press = None if row.press is None else row.press.build()
    if press is None:
        yield
        return
    row.packs = packs(press)
    if row.watched:
        row.evicted = watch(press)
    with press(model):
        yield


def watch(press: Any) -> EvictedMass | None:
    """Observe what `press` drops inside its own context; None for a press without scores."""
    if not hasattr(press, "score"):
        return None
    evicted, compress = EvictedMass(press), press.compress

    def watched(*args: Any, **kwargs: Any) -> KV:
        kept: KV = compress(*args, **kwargs)
        evicted.kept(kept[0].shape[2])
        return kept

    press.compress = watched
    return evicted


@contextlib.contextmanager
def with_head_size(model: Any) -> Iterator[None]:
    """Set `head_dim` in the model's configuration where it is missing.

    CriticalKV reads it there. Qwen2, among others, has it on its attention modules only.
    """
    config = model.config.get_text_config()
    width, heads = (getattr(config, n, None) for n in ("hidden_size", "num_attention_heads"))
    if getattr(config, "head_dim", None) is not None or not (width and heads):
        yield
        return
    before = vars(config).get("head_dim", _ABSENT)
    config.head_dim = width // heads
    try:
        yield
    finally:
        if before is _ABSENT:
            del config.head_dim
        else:
            config.head_dim = before


@contextlib.contextmanager
def _compressing(
    model: Any,
    cache: DynamicCache,
    rows: Sequence[PromptRow],
    store: Callable[[int, Sequence[KV]], None],
) -> Iterator[None]:
    """Every row's press compresses each layer after its attention; the full layer is then dropped.

    Does for many presses what kvpress's context manager and hook do for one. Scores that do not
    depend on the budget are computed once for all budgets of a press.
    """
    scores = SharedScores()
    presses = [_made(model, row, None, scores) for row in rows]
    for row, press in zip(rows, presses, strict=True):
        row.packs = press is not None and packs(press)
        if hasattr(press, "score") and row.watched:
            row.evicted = EvictedMass(press)
    shadows = {id(r.shadow.prompt): r.shadow.prompt for r in rows if r.shadow is not None}
    others = [_OtherBudgets(model, row, presses[i], scores) for i, row in enumerate(rows)]

    def compress(
        module: Any, row: PromptRow, press: Any, full: KV, weights: Any, kwargs: dict[str, Any]
    ) -> KV:
        stub = (full[0][:, :, :1], full[1][:, :, :1])
        if row.error is not None:
            return stub
        if press is None:
            return full
        try:
            with row.stream.drawing():
                kept: KV = press.compress(module, kwargs["hidden_states"], *full, weights, kwargs)
            check_kept(press, full, kept)
        except Exception as error:  # noqa: BLE001  this row fails; the others go on
            row.error = error
            return stub
        if row.evicted is not None:
            row.evicted.kept(kept[0].shape[2])
        return kept

    def remember(
        module: Any, row: PromptRow, other: "_OtherBudgets", full: KV, kept: KV, *rest: Any
    ) -> None:
        try:
            other.store(module, full, kept, *rest)
        except Exception as error:  # noqa: BLE001  this row fails; the others go on
            row.error = row.error or error

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = cache.layers[module.layer_idx]
        full = (layer.keys, layer.values)
        scores.forget()
        compressed = [
            compress(module, row, press, full, output[1], kwargs)
            for row, press in zip(rows, presses, strict=True)
        ]
        for shadow in shadows.values():
            shadow.store(module.layer_idx, full)
        for row, other, kept in zip(rows, others, compressed, strict=True):
            if row.shadow is not None and row.error is None:
                remember(module, row, other, full, kept, output[1], kwargs)
        store(module.layer_idx, compressed)
        layer.keys, layer.values = full[0][:, :, :0].clone(), full[1][:, :, :0].clone()

    body = getattr(model.model, "language_model", model.model)
    rotary = _rotary_by_device(body)
    handles = []
    try:
        for decoder_layer in body.layers:
            attention = decoder_layer.self_attn
            attention.rotary_emb = rotary[_device(attention)]  # kvpress's presses read it here
            handles.append(decoder_layer.self_attn.register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _device(module: Any) -> torch.device:
    device: torch.device = next(module.parameters()).device
    return device


def _rotary_by_device(body: Any) -> dict[torch.device, Any]:
    """The rotary embedding on every device that has layers; its own where the model has one."""
    devices = list(dict.fromkeys(_device(layer.self_attn) for layer in body.layers))
    if len(devices) == 1:
        return {devices[0]: body.rotary_emb}
    # accelerate's hook would move the output
    from accelerate.hooks import remove_hook_from_module  # type: ignore[import-untyped]

    copies = {d: remove_hook_from_module(copy.deepcopy(body.rotary_emb)) for d in devices}
    return {device: rotary.to(device) for device, rotary in copies.items()}


def check_kept(press: Any, full: KV, kept: Any) -> None:
    """Raises `ValueError` if `kept` is not a part of a layer's `full` keys and values."""
    name, where = f"{type(press).__name__}.compress", own_method(type(press))
    name += "" if where is None else f" ({where})"
    if not (isinstance(kept, tuple | list) and len(kept) == 2):
        raise ValueError(f"{name} returned a {type(kept).__name__}, not keys and values")
    for what, old, new in zip(("keys", "values"), full, kept, strict=True):
        if not isinstance(new, torch.Tensor):
            raise ValueError(f"{name} returned {what} that are a {type(new).__name__}")
        before, after = list(old.shape), list(new.shape)
        if (
            new.dtype != old.dtype
            or len(after) != 4
            or before[:2] + before[3:] != (after[:2] + after[3:])
        ):
            raise ValueError(
                f"{name} returned {what} {after} of {new.dtype}, of {before} of {old.dtype}; only "
                "the number of entries, the third of these, may change"
            )
    if kept[0].shape[2] != kept[1].shape[2]:
        raise ValueError(f"{name} kept {kept[0].shape[2]} keys and {kept[1].shape[2]} values")
    if kept[0].shape[2] == 0:
        raise ValueError(f"{name} kept no entry at all")


def _made(model: Any, row: PromptRow, budget: float | None, scores: SharedScores) -> Any | None:
    """A press for `row`, of its own or another `budget`, ready for this model."""
    if row.press is None:
        return None
    asked = row.press if budget is None else row.press.at(budget)
    press = asked.build()
    if press is not None:
        press.post_init_from_model(model)
        remember_average_rope(press)
        if hasattr(press, "score") and asked.method_key is not None:
            scores.share(press, asked.method_key)
    return press


class _OtherBudgets:
    """What a row's press keeps at each budget of its shadow, computed during the prefill."""

    def __init__(self, model: Any, row: PromptRow, press: Any, scores: SharedScores) -> None:
        self._row = row
        self._own = Scores(press)
        self._others: list[tuple[float, Any, Scores]] = []
        shadow = row.shadow
        budgets = shadow.budgets if shadow is not None else ()
        for budget in budgets:
            if shadow is not None and budget != shadow.nominal:
                other = _made(model, row, budget, scores)
                self._others.append((budget, other, Scores(other)))
        # equal to the row's own stream, which is not drawn from
        self._streams = [RandomStream(row.stream.seed, row.stream.devices) for _ in self._others]

    def store(self, module: Any, full: KV, kept: KV, weights: Any, kwargs: dict[str, Any]) -> None:
        shadow, at = self._row.shadow, module.layer_idx
        assert shadow is not None
        if shadow.nominal < FULL:
            shadow.store(shadow.nominal, at, full, kept, self._own.take())
        hidden = kwargs["hidden_states"]
        for (budget, press, scores), stream in zip(self._others, self._streams, strict=True):
            with stream.drawing():
                more = press.compress(module, hidden, *full, weights, kwargs)
            shadow.store(budget, at, full, more, scores.take())


def kv_use(row: PromptRow, n_tokens: int) -> KVUse:
    """The cache after compression of `n_tokens` prompt tokens; no entry is hidden from attention.

    Raises `ValueError` if it is empty.
    """
    if not any(row.entries):
        raise ValueError("the press kept no entry at all")
    kept = sum(row.entries) / len(row.entries)
    per_entry = row.bytes / kept
    return KVUse(
        entries_nominal=float(row.kept_tokens),
        entries_effective=kept,
        entries_physical=kept,
        bytes_nominal=round(row.kept_tokens * per_entry),
        bytes_effective=row.bytes,
        bytes_physical=row.bytes,
        bytes_full=round(n_tokens * per_entry),
        bytes_peak=row.bytes,
    )
