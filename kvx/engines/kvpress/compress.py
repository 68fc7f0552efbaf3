"""Presses in a forward pass: what each of them keeps of a layer, as the layer passes."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from kvpress import BasePress

from kvx.engines.kvpress.architecture import decoder_of
from kvx.engines.kvpress.compression import check_window, compressed
from kvx.engines.kvpress.given import may_write
from kvx.engines.kvpress.kept import LayerEntries, watch_positions
from kvx.engines.kvpress.layers import CachedLayer, layers_of
from kvx.engines.kvpress.linear import own_linears
from kvx.engines.kvpress.model_state import untouched
from kvx.engines.kvpress.parts import needs_gradients, packs, zeroes
from kvx.engines.kvpress.press_queries import PressQueries
from kvx.engines.kvpress.probe import EvictedMass
from kvx.engines.kvpress.prompt_row import PromptRow, RowPress
from kvx.engines.kvpress.replacing import attribute
from kvx.engines.kvpress.rotary import unchanged
from kvx.engines.kvpress.shadow import FULL, Scores
from kvx.engines.kvpress.shared_scores import SharedScores, remember_average_rope
from kvx.engines.kvpress.states import KV, empty, kv_of, put
from kvx.engines.kvpress.streams import RandomStream
from kvx.engines.kvpress.transformers_versions import kvpress_arguments, kvpress_hooks


@contextlib.contextmanager
def in_own_press(model: Any, row: PromptRow, cache: Any) -> Iterator[None]:
    """The model under the press of a `row`, for presses that change the forward pass."""
    press = None if row.press is None else row.press.build()
    if press is not None:
        row.packs = packs(press)
        if row.watched:
            row.evicted = watch(press)
        if row.kept is not None:
            watch_positions(press, row.kept)
    with hooked(model, press, cache, row.press is not None and row.press.reads_weights):
        yield


def runs_itself(row: PromptRow) -> bool:
    """Whether the press of a `row` has a context or a hook of its own."""
    press = None if row.press is None else row.press.build()
    own = ("__call__", "forward_hook")
    return press is not None and any(
        getattr(type(press), name, None) is not getattr(BasePress, name) for name in own
    )


@contextlib.contextmanager
def hooked(model: Any, press: Any | None, cache: Any, reads_weights: bool) -> Iterator[None]:
    """The model under a press, on layers of full attention, for a prefill into an empty `cache`.

    A press with a context or a hook of its own gets the model, or its layers, as they are.
    """
    if press is None:
        yield
        return
    if type(press).__call__ is not BasePress.__call__:
        own = own_linears(model) if needs_gradients(press) else contextlib.nullcontext()
        with own, PressQueries(model) as queries, kvpress_hooks(model):
            queries.serve(press)
            with press(model):
                yield
        return
    press.post_init_from_model(model)
    among = layers_of(model).full
    layers = {id(layer.attention): layer for layer in among}

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        index, seen = layers[id(module)].index, seen_by(module, args, kwargs)
        if type(press).forward_hook is not BasePress.forward_hook:
            return press.forward_hook(module, args, seen, output)
        weights = output[1] if reads_weights else None  # some presses refuse them
        full = kv_of(cache, index)
        put(cache, index, compressed(press, module, layers[id(module)], among, full, weights, seen))
        return output

    modules = [layer.attention for layer in layers.values()]
    rotary = _rotary_by_device(model, modules)
    with contextlib.ExitStack() as stack:
        stack.enter_context(PressQueries(model)).serve(press)
        for attention in modules:
            stack.enter_context(_with_rotary(attention, rotary[_device(attention)]))
            handle = attention.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def seen_by(module: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What an attention `module` was called with in a prefill, by the names that presses expect."""
    seen = {"hidden_states": args[0], **kwargs} if args else dict(kwargs)
    seen.setdefault("position_embeddings", None)  # of attention without any: presses ask for them
    if seen.get("cache_position") is None:
        hidden = seen["hidden_states"]
        seen["cache_position"] = torch.arange(hidden.shape[1], device=hidden.device)
    return kvpress_arguments(module, seen)


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
def compressing(
    model: Any,
    cache: Any,
    rows: Sequence[PromptRow],
    store: Callable[[CachedLayer, Sequence[KV]], None],
    owned: bool = True,
) -> Iterator[None]:
    """Every row's press compresses each layer after its attention; the full layer is then dropped.

    Does for many presses what kvpress's context manager and hook do for one. Scores that do not
    depend on the budget are computed once for all budgets of a press. What a press that is not
    kvpress's does to an `owned` model is undone.
    """
    with PressQueries(model) as queries, contextlib.ExitStack() as stack:
        scores = SharedScores()
        presses = [None if row.press is None else row.press.build() for row in rows]
        if owned and any(press is not None and may_write(press) for press in presses):
            stack.enter_context(untouched(model))
        for row, press in zip(rows, presses, strict=True):
            _fit(model, press, row.press, scores, queries)
        stack.enter_context(_compressing(model, cache, rows, presses, store, scores, queries))
        yield


@contextlib.contextmanager
def _compressing(
    model: Any,
    cache: Any,
    rows: Sequence[PromptRow],
    presses: Sequence[Any],
    store: Callable[[CachedLayer, Sequence[KV]], None],
    scores: SharedScores,
    queries: PressQueries,
) -> Iterator[None]:
    layers = layers_of(model)
    for row, press in zip(rows, presses, strict=True):
        if press is None and not layers.full:
            row.everywhere = True  # windows are its full cache
        row.packs = press is not None and packs(press)
        row.zeroes = press is not None and zeroes(press)
        if hasattr(press, "score") and row.watched:
            row.evicted = EvictedMass(press)
    shadows = {id(r.shadow.prompt): r.shadow.prompt for r in rows if r.shadow is not None}
    others = [_OtherBudgets(model, row, presses[i], scores, queries) for i, row in enumerate(rows)]

    passed: list[tuple[int, KV]] = []  # the layer that attends now

    def compress(
        module: Any,
        layer: CachedLayer,
        row: PromptRow,
        press: Any,
        full: KV,
        weights: Any,
        kwargs: dict[str, Any],
        entries: LayerEntries,
    ) -> KV:
        stub = (full[0][:, :, :1], full[1][:, :, :1])
        if row.error is not None:
            return stub
        if press is None or not (layer.window is None or row.everywhere):
            return full
        try:
            check_window(layer, full, row.room)
            among = list(layers.cached.values()) if row.everywhere else layers.full
            with row.stream.drawing(), unchanged(model):
                kept = compressed(press, module, layer, among, full, weights, kwargs)
        except Exception as error:  # noqa: BLE001  this row fails; the others go on
            row.error = error
            return stub
        if row.evicted is not None:
            row.evicted.kept(kept[0].shape[2])
        if row.kept is not None:
            row.kept.add(entries.positions(kept))
        return kept

    def remember(
        module: Any,
        layer: CachedLayer,
        row: PromptRow,
        other: "_OtherBudgets",
        full: KV,
        *rest: Any,
    ) -> None:
        try:
            other.store(module, layer, full, *rest)
        except Exception as error:  # noqa: BLE001  this row fails; the others go on
            row.error = row.error or error

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        index, full = passed.pop()
        layer = layers.cached[index]
        seen = seen_by(module, args, kwargs)
        scores.forget()
        entries = LayerEntries(full)
        parts = [
            compress(module, layer, row, press, full, _weights(row, output), seen, entries)
            for row, press in zip(rows, presses, strict=True)
        ]
        for shadow in shadows.values():
            shadow.store(layer, full)
        for row, other, kept in zip(rows, others, parts, strict=True):
            if row.shadow is not None and row.error is None and layer.window is None:
                remember(module, layer, row, other, full, kept, _weights(row, output), seen)
        store(layer, parts)
        empty(cache, index)
        queries.forget()

    update = cache.update

    def remembered(keys: torch.Tensor, values: torch.Tensor, index: int, *a: Any, **k: Any) -> Any:
        found = update(keys, values, index, *a, **k)
        # all of them, where a window's cache keeps its end only
        whole = found if found[0].shape == keys.shape else (keys, values)
        passed.append((index, (whole[0].contiguous(), whole[1].contiguous())))
        return found

    cache.update = remembered  # taken back below: it holds the cache that holds it
    modules = list({id(x.attention): x.attention for x in layers.cached.values()}.values())
    rotary = _rotary_by_device(model, modules)
    with contextlib.ExitStack() as stack:
        stack.callback(vars(cache).pop, "update")
        for attention in modules:
            stack.enter_context(_with_rotary(attention, rotary[_device(attention)]))
            handle = attention.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _weights(row: PromptRow, output: Any) -> Any:
    """Attention weights [1, heads, n, n], for a press that reads them: some refuse them."""
    return output[1] if row.press is not None and row.press.reads_weights else None


def _device(module: Any) -> torch.device:
    device: torch.device = next(module.parameters()).device
    return device


def _rotary_by_device(model: Any, modules: Sequence[Any]) -> dict[torch.device, Any]:
    """The rotary embedding on every device that has layers; its own where the model has one."""
    own = getattr(decoder_of(model), "rotary_emb", None)
    devices = list(dict.fromkeys(_device(module) for module in modules))
    if own is None or len(devices) == 1:
        return dict.fromkeys(devices, own)
    # accelerate's hook would move the output
    from accelerate.hooks import remove_hook_from_module  # type: ignore[import-untyped]

    copies = {d: remove_hook_from_module(copy.deepcopy(own)) for d in devices}
    return {device: rotary.to(device) for device, rotary in copies.items()}


@contextlib.contextmanager
def _with_rotary(module: Any, rotary: Any | None) -> Iterator[None]:
    """An attention `module` with the model's `rotary` embedding, which kvpress's presses read."""
    if rotary is None or getattr(module, "rotary_emb", None) is rotary:
        yield
        return
    with attribute(module, "rotary_emb", rotary):
        yield


def _fit(
    model: Any,
    press: Any | None,
    made_by: RowPress | None,
    scores: SharedScores,
    queries: PressQueries,
) -> None:
    """Make a `press` ready for this model. It may change the model."""
    if press is None or made_by is None:
        return
    press.post_init_from_model(model)
    remember_average_rope(press)
    if hasattr(press, "score") and made_by.method_key is not None:
        scores.share(press, made_by.method_key)
    queries.serve(press)


class _OtherBudgets:
    """What a row's press keeps at each budget of its shadow, computed during the prefill."""

    def __init__(
        self,
        model: Any,
        row: PromptRow,
        press: Any,
        scores: SharedScores,
        queries: PressQueries,
    ) -> None:
        self._row, self._model = row, model
        self._own = Scores(press)
        self._others: list[tuple[float, Any, Scores]] = []
        shadow = row.shadow
        budgets = shadow.budgets if shadow is not None else ()
        for budget in budgets:
            if shadow is not None and budget != shadow.nominal:
                made_by = None if row.press is None else row.press.at(budget)
                other = None if made_by is None else made_by.build()
                _fit(model, other, made_by, scores, queries)
                self._others.append((budget, other, Scores(other)))
        # equal to the row's own stream, which is not drawn from
        self._streams = [RandomStream(row.stream.seed, row.stream.devices) for _ in self._others]

    def store(
        self,
        module: Any,
        layer: CachedLayer,
        full: KV,
        kept: KV,
        weights: Any,
        kwargs: dict[str, Any],
    ) -> None:
        shadow, at, among = self._row.shadow, layer.index, layers_of(self._model).full
        assert shadow is not None
        if shadow.nominal < FULL:
            shadow.store(shadow.nominal, at, full, kept, self._own.take())
        for (budget, press, scores), stream in zip(self._others, self._streams, strict=True):
            with stream.drawing(), unchanged(self._model):
                more = compressed(press, module, layer, among, full, weights, kwargs)
            shadow.store(budget, at, full, more, scores.take())
