"""Presses on layers whose keys and values have other widths than a press expects.

kvpress gathers keys and values with one index of `module.head_dim` channels. Latent attention has
values narrower than keys and no `head_dim`; some families name another width so.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from kvpress import BasePress
from torch.nn.functional import pad

from kvx.engines.kvpress.parts import parts_of

_ABSENT = object()


def fit(press: Any) -> None:
    """Let `press` gather whole keys and values of any layer, and score the values as they are."""
    if not isinstance(press, BasePress):
        return
    narrow: list[int] = []  # of the values of the layer that is compressed now, if padded
    for part in parts_of(press):
        if hasattr(part, "score"):
            part.score = _scoring(part.score, narrow)
    press.compress = _gathering(press.compress, narrow)


def _gathering(compress: Callable[..., Any], narrow: list[int]) -> Callable[..., Any]:
    @wraps(compress)
    def fitted(module: Any, hidden: Any, keys: Any, values: Any, *rest: Any, **kw: Any) -> Any:
        width, size = keys.shape[-1], values.shape[-1]
        if getattr(module, "head_dim", None) == width == size:
            return compress(module, hidden, keys, values, *rest, **kw)
        widest = max(width, size)
        with _head_size(module, widest):
            if width == size:
                return compress(module, hidden, keys, values, *rest, **kw)
            narrow[:] = [width, size]
            try:
                wide = (pad(t, (0, widest - t.shape[-1])) for t in (keys, values))
                kept, kept_values = compress(module, hidden, *wide, *rest, **kw)
            finally:
                narrow.clear()
            return kept[..., :width].contiguous(), kept_values[..., :size].contiguous()

    return fitted


def _scoring(score: Callable[..., Any], narrow: list[int]) -> Callable[..., Any]:
    # the names are kvpress's, which passes them by name too
    @wraps(score)
    def scored(
        module: Any, hidden_states: Any, keys: Any, values: Any, *rest: Any, **kw: Any
    ) -> Any:
        if narrow:
            keys, values = keys[..., : narrow[0]], values[..., : narrow[1]]
        return score(module, hidden_states, keys, values, *rest, **kw)

    return scored


@contextlib.contextmanager
def _head_size(module: Any, size: int) -> Iterator[None]:
    """Presses read it at the attention module."""
    before = vars(module).get("head_dim", _ABSENT)
    module.head_dim = size
    try:
        yield
    finally:
        if before is _ABSENT:
            del module.head_dim
        else:
            module.head_dim = before
