"""A layer's own queries and keys, from its module: run again until it calls the attention function.

The same hidden states at rotary position 0 and at positions to come give ExpectedAttention's
statistics without any knowledge of norms, rotary embeddings or projections.
"""

import inspect
import math
from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

BASIS = 48  # hidden states from which the mean rotation is found
NAME = "reference_queries"


class _Found(Exception):  # noqa: N818  no error: it ends the pass
    def __init__(self, query: torch.Tensor, key: torch.Tensor) -> None:
        self.query, self.key = query, key


def _find(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: Any, mask: Any, **kwargs: Any
) -> None:
    """The query, scaled so that its product with a key over √size is what the softmax gets."""
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    raise _Found(query * scaling * math.sqrt(query.shape[-1]), key)


ALL_ATTENTION_FUNCTIONS.register(NAME, _find)


def statistics(
    rotary: Any | None, module: Any, hidden: torch.Tensor, kwargs: dict[str, Any], n_sink: int,
    n_future: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Mean [1, heads, size] and covariance of the queries after the first `n_sink` positions.

    Both are rotated by the mean of the `n_future` positions that follow the prompt.
    """
    n = hidden.shape[1]
    rows = torch.arange(n_sink, n)
    plain, _ = own(rotary, module, hidden, kwargs, rows, torch.zeros_like(rows))
    mean = plain.mean(2, keepdim=True)
    centred = plain - mean
    covariance = torch.einsum("bnsi,bnsj->bnij", centred, centred) / len(rows)
    some = rows[-BASIS:]
    future = torch.arange(n, n + n_future)
    later, _ = own(
        rotary, module, hidden, kwargs, some.repeat_interleave(n_future), future.repeat(len(some))
    )
    later = later.unflatten(2, (len(some), n_future)).mean(3)
    before, after = (x.flatten(0, 2).double() for x in (plain[:, :, -len(some) :], later))
    turn = torch.linalg.lstsq(before, after).solution.to(plain)
    return (mean @ turn).squeeze(2), turn.T @ covariance @ turn


def own(
    rotary: Any | None, module: Any, hidden: torch.Tensor, kwargs: dict[str, Any],
    rows: torch.Tensor, positions: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Queries [1, heads, n, size] and keys of the hidden states at `rows`.

    They are rotated to `positions`; None: to where the pass of `kwargs` had them, all of its rows.
    """
    given = {name: v for name, v in kwargs.items() if name not in ("past_key_values", "cache")}
    given |= {"hidden_states": hidden[:, rows], "attention_mask": None}
    if positions is not None and given.get("position_embeddings") is not None:
        given["position_embeddings"] = _embeddings(rotary, module, hidden, positions)
    if given.get("cache_position") is not None:
        given["cache_position"] = given["cache_position"][rows]
    if given.get("position_ids") is not None:
        given["position_ids"] = given["position_ids"][..., rows]
    if "shared_kv_states" in given:
        given["shared_kv_states"] = {}
    before = module.config._attn_implementation
    module.config._attn_implementation = NAME
    # Llama 4 takes the places of these rows for their positions, unless it is given them
    tuned = getattr(module, "attn_temperature_tuning", False) and not module.use_rope
    counts = tuned and given.get("cache_position") is None
    if counts:
        module.attn_temperature_tuning = False
    try:
        module.forward(**given)
    except _Found as found:
        scale: Any = 1.0
        if counts:
            steps = torch.floor((rows.float() + 1.0) / module.floor_scale)
            scale = (torch.log1p(steps) * module.attn_scale + 1.0)[:, None]
        return found.query * scale, found.key
    finally:
        module.config._attn_implementation = before
        if counts:
            module.attn_temperature_tuning = tuned
    raise NotImplementedError(f"{type(module).__name__} calls no attention function")


def _embeddings(rotary: Any, module: Any, hidden: torch.Tensor, positions: torch.Tensor) -> Any:
    more = {}
    if "layer_type" in inspect.signature(rotary.forward).parameters:
        more["layer_type"] = module.config.layer_types[module.layer_idx]
    at = positions[None]
    if type(rotary).__name__.startswith(("Qwen2_5_VL", "Qwen3VL", "Qwen3_5")):
        at = at[None].expand(3, 1, -1)  # time, height and width
    return rotary(hidden, at, **more)
