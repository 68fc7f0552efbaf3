"""Rotary embeddings whose frequencies depend on the length, each row at its own.

Dynamic NTK and LongRoPE (transformers' `dynamic_rope_update`) take the length from the largest
position of a batch and keep what they computed on the module. Rows of other lengths, and whatever
runs later, would be rotated by it.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch

from kvx.engines.kvpress.replacing import attribute

# what `dynamic_rope_update` leaves on a module, as transformers 5.2 and later versions name it
_LEFT_BEHIND = re.compile(r".+_max_seq_len_cached|(.*_)?long_inv_freq")

_found: WeakKeyDictionary[Any, tuple[Any, ...]] = WeakKeyDictionary()


def length_dependent(model: Any) -> tuple[Any, ...]:
    """The model's rotary modules with frequencies that depend on the length; mostly none."""
    if model not in _found:
        _found[model] = tuple(m for m in model.modules() if _depends(m))
    return _found[model]


@contextlib.contextmanager
def own_positions(model: Any, lengths: torch.Tensor | None = None) -> Iterator[None]:
    """Each row's rotation is that of a fresh model which has only this row.

    Without `lengths`, a row's length is its largest position + 1. A row whose tokens arrive in
    several passes, but count as one, gives its length at the end in `lengths` [rows, 1]; tokens
    that were generated one by one and are passed again give the length of each, [rows, n].

    After a call with rows of one length, the module has the frequencies of that length until the
    next: presses read them there. At the end it has what it had before.
    """
    modules = length_dependent(model)
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(_restored(module))
            forward = functools.partial(_by_regime, module, module.forward, lengths)
            stack.enter_context(attribute(module, "forward", forward))
        yield


@contextlib.contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """What runs in this context, a press say, leaves the frequencies as it found them."""
    with contextlib.ExitStack() as stack:
        for module in length_dependent(model):
            stack.enter_context(_restored(module))
        yield


def _rope_types(module: Any) -> dict[str | None, str]:
    """By layer type; None where all layers share one."""
    found = getattr(module, "rope_type", None)
    if found is None:  # Phimoe's has none
        rope = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
        found = rope.get("rope_type")
    if isinstance(found, dict):
        return found
    return {None: found} if isinstance(found, str) else {}


def _depends(module: Any) -> bool:
    if "Rotary" not in type(module).__name__:
        return False
    return any("dynamic" in kind or kind == "longrope" for kind in _rope_types(module).values())


def _by_regime(
    module: Any,
    forward: Callable[..., Any],
    lengths: torch.Tensor | None,
    x: torch.Tensor,
    position_ids: torch.Tensor,
    layer_type: str | None = None,
) -> Any:
    """The module's own `forward`, once for each group of rows that share their frequencies.

    `position_ids` is [..., rows, n]; cosines and sines are [..., rows, n, size].
    """
    options = {} if layer_type is None else {"layer_type": layer_type}
    one_by_one = lengths is not None and lengths.shape[1] > 1
    shape = position_ids.shape
    if one_by_one:
        assert lengths is not None
        position_ids = position_ids.reshape(*shape[:-2], -1, 1)
        lengths = lengths.expand(shape[-2:]).reshape(-1, 1)
    if lengths is not None:  # a position that no token has, for the length alone
        last = (lengths.to(position_ids.device) - 1).expand(*position_ids.shape[:-1], 1)
        position_ids = torch.cat([position_ids, last], -1)
    regimes = _regimes(module, layer_type, position_ids)
    parts, order = [], []
    for regime in sorted(set(regimes.tolist())):
        rows = (regimes == regime).nonzero()[:, 0]
        _clean(module, layer_type)
        parts.append(forward(x, position_ids.index_select(-2, rows), **options))
        order.append(rows)
    if len(parts) > 1:
        _clean(module, layer_type)  # not those of the last group
    back = torch.cat(order).argsort()

    def joined(*pieces: torch.Tensor) -> torch.Tensor:
        whole = torch.cat(pieces, -3).index_select(-3, back) if len(pieces) > 1 else pieces[0]
        if lengths is not None:
            whole = whole[..., :-1, :]
        return whole.reshape(*shape, whole.shape[-1]) if one_by_one else whole

    if isinstance(parts[0], torch.Tensor):  # Llama 4: one complex rotation
        return joined(*parts)
    return tuple(joined(*pieces) for pieces in zip(*parts, strict=True))


def _regimes(module: Any, layer_type: str | None, position_ids: torch.Tensor) -> torch.Tensor:
    """A number for each row; rows of one number have the same frequencies."""
    length = position_ids.amax(-1) + 1
    length = length.amax(tuple(range(length.dim() - 1))) if length.dim() > 1 else length
    kind = _rope_types(module).get(layer_type, "")
    if kind == "longrope":
        rope = module.config.rope_parameters
        rope = rope if layer_type is None else rope[layer_type]
        border: int = rope["original_max_position_embeddings"]
        return (length > border).long()
    if "dynamic" in kind:
        shortest: int = module.original_max_seq_len
        return length.clamp(min=shortest)
    return torch.zeros_like(length)


def _clean(module: Any, layer_type: str | None = None) -> None:
    """The state of a new module, for one type of layers or for all."""
    own = "" if layer_type is None else f"{layer_type}_"
    for owner in (module._buffers, vars(module)):
        for name in [n for n in owner if n.startswith(own) and n.endswith("original_inv_freq")]:
            current = name.removesuffix("original_inv_freq") + "inv_freq"
            module._buffers[current] = owner[name].clone()  # later versions write into it
    for name in [n for n in vars(module) if n.startswith(own) and _LEFT_BEHIND.fullmatch(n)]:
        delattr(module, name)
    if hasattr(module, "original_max_seq_len"):
        module.max_seq_len_cached = module.original_max_seq_len
    if isinstance(getattr(module, "rope_type", None), dict):  # it has one for each layer type
        vars(module).pop("attention_scaling", None)


@contextlib.contextmanager
def _restored(module: Any) -> Iterator[None]:
    """Buffers and plain attributes of `module` are as before afterwards."""
    buffers, attributes = dict(module._buffers), _plain(module)
    for name, buffer in buffers.items():
        module._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        module._buffers.clear()
        module._buffers.update(buffers)
        for name in _plain(module).keys() - attributes.keys():
            delattr(module, name)
        vars(module).update(attributes)


def _plain(module: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if not name.startswith("_")}
