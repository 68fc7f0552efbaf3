"""Query scales that depend on the position, and that models take from their cache's length.

In a batch every row has a position of its own. The model scales all rows as it would the first one;
the difference is made good in attention.
"""

import inspect
from typing import Any

import torch


def cache_positions(model: Any, positions: torch.Tensor) -> dict[str, torch.Tensor]:
    """The argument that tells `positions` [n] in the cache to models that take it (before 5.4).

    Some of them count from 0 without it, whatever the cache holds.
    """
    return {"cache_position": positions} if _by_cache_position(type(model)) else {}


def scales_by_position(module: Any) -> bool:
    """Whether an attention `module` scales its queries by a position that it takes from a cache."""
    if getattr(module, "attn_temperature_tuning", False) and not getattr(module, "use_rope", True):
        return True
    return _llama4_beta(module) is not None and _by_cache_position(type(module))


def scales_by_length(module: Any) -> bool:
    """Whether that position is the length of the cache, which no argument replaces."""
    return scales_by_position(module) and not _by_cache_position(type(module))


def own_scale(module: Any, positions: torch.Tensor) -> torch.Tensor | None:
    """What to multiply the queries of an attention `module` by, [rows, 1, n, 1]; None: nothing.

    The model took the first row's `positions` [rows, n] for those of all rows.
    """
    if positions.shape[0] == 1 or not scales_by_position(module):
        return None
    if (found := _llama4_beta(module)) is not None:
        own, taken = (_ministral3(*found, at) for at in (positions, positions[:1]))
    else:
        own, taken = (_llama4(module, at) for at in (positions, positions[:1]))
    return (own / taken)[:, None, :, None]


def _llama4(module: Any, positions: torch.Tensor) -> torch.Tensor:
    steps = torch.floor((positions.float() + 1.0) / module.floor_scale)
    scale: torch.Tensor = torch.log1p(steps) * module.attn_scale + 1.0
    return scale


def _llama4_beta(module: Any) -> tuple[float, float] | None:
    rope = getattr(getattr(module, "config", None), "rope_parameters", None)
    if not rope or rope.get("llama_4_scaling_beta") is None:
        return None
    return rope["llama_4_scaling_beta"], rope["original_max_position_embeddings"]


def _ministral3(beta: float, original: float, positions: torch.Tensor) -> torch.Tensor:
    return 1 + beta * torch.log1p(torch.floor(positions / original))


_takes_positions: dict[Any, bool] = {}


def _by_cache_position(kind: Any) -> bool:
    """Whether positions in the cache, one for all rows, are an argument of this class."""
    if kind not in _takes_positions:
        taken = inspect.signature(kind.forward).parameters
        _takes_positions[kind] = "cache_position" in taken
    return _takes_positions[kind]
