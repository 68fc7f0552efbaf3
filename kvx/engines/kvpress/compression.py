"""One press on one layer: what it is given, and what it may return."""

from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from kvpress import PyramidKVPress
from kvpress.utils import compute_n_kept

from kvx.engines.kvpress.adapted import ByLayer
from kvx.engines.kvpress.given import copied, may_write
from kvx.engines.kvpress.layers import CachedLayer
from kvx.engines.kvpress.parts import own_method, parts_of
from kvx.engines.kvpress.states import KV


def compressed(
    press: Any,
    module: Any,
    layer: CachedLayer,
    among: Sequence[CachedLayer],
    full: KV,
    weights: Any,
    kwargs: dict[str, Any],
) -> KV:
    """What a press, fitted by `PressQueries.serve`, keeps of a `layer`, one `among` several.

    Nothing that it is given is changed. Raises what the press raises, and `ValueError` where it
    returns something else than a part of the layer.
    """
    given = full
    if may_write(press):
        given, weights, kwargs = copied((full, weights, kwargs))
    _count_among(press, layer, among)
    kept: KV = press.compress(module, kwargs["hidden_states"], *given, weights, kwargs)
    _check_kept(press, full, kept)
    return kept


def check_window(layer: CachedLayer, full: KV, room: int) -> None:
    """Raises `ValueError` where a layer to be compressed will no longer see the prompt's beginning.

    `room` is how many tokens may follow the prompt. A window counts entries: where some are
    dropped, it would reach back further than the model does.
    """
    n = full[0].shape[2] + room
    if layer.window is not None and n > layer.window:
        raise ValueError(
            f"press.layers=all: layer {layer.index} sees {layer.window} tokens; prompt and answer "
            f"may have {n}; use shorter contexts, fewer new tokens or press.layers=full"
        )


def _count_among(press: Any, layer: CachedLayer, compressed: Sequence[CachedLayer]) -> None:
    """Where budgets go by the layer's number, it is counted among the compressed layers only."""
    n = len(compressed)
    for part in parts_of(press):
        if not isinstance(part, PyramidKVPress | ByLayer):
            continue
        at = [other.index for other in compressed].index(layer.index)
        if isinstance(part, ByLayer):
            part.counted(at, n)
        else:
            stand_in = SimpleNamespace(layer_idx=at, config=SimpleNamespace(num_hidden_layers=n))
            by_rule = partial(PyramidKVPress.get_layer_budget, part, stand_in)
            # one layer is no pyramid: kvpress would give it the widest layer's budget
            part.get_layer_budget = partial(_budget, part, None if n == 1 else by_rule)


def _budget(press: Any, rule: Callable[[int], int] | None, module: Any, n: int) -> int:
    kept: int = compute_n_kept(n, press.compression_ratio) if rule is None else rule(n)
    return kept


def _check_kept(press: Any, full: KV, kept: Any) -> None:
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
