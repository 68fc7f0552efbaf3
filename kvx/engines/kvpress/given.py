"""What a press is given of a layer, so that whatever it writes changes nobody else's.

All points of a prefill read the same keys, values and hidden states, and later layers the same
rotary embedding. kvpress's own presses write into none of them, ThinK aside. Of a user's press that
is not known, so it gets copies, of one layer and while it compresses it.
"""

from typing import Any

import torch

from kvx.engines.kvpress.parts import WRITING, parts_of


def may_write(press: Any) -> bool:
    """Whether a press, or one that it wraps, is not known to leave what it is given as it is."""
    return any(
        isinstance(part, WRITING) or type(part).__module__.partition(".")[0] != "kvpress"
        for part in parts_of(press)
    )


def copied(value: Any) -> Any:
    """Tensors anew, also inside of tuples, lists and dictionaries; other objects as they are."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: copied(item) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(copied(item) for item in value)
    return value
