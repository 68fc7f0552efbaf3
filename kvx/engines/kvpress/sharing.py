"""Whether rows of different length can pass through a model together: tried once per model."""

from typing import Any
from weakref import WeakKeyDictionary

import torch

from kvx.engines.kvpress.forward import forward
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.memory import OUT_OF_MEMORY
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.model_state import untouched
from kvx.engines.kvpress.prefill import prefill
from kvx.engines.kvpress.prompt_row import PromptRow
from kvx.engines.kvpress.rotary import own_positions
from kvx.engines.kvpress.sequence import Row
from kvx.engines.kvpress.states import new_cache
from kvx.engines.kvpress.streams import RandomStream
from kvx.engines.kvpress.transformers_versions import cache_argument
from kvx.errors import first_line

# prompts of the trial, in tokens, and how many follow each
PROMPTS, FOLLOWING = (9, 5), 2
# largest difference of logits that rounding explains, as a share of their norm
ROUNDING, ROUNDING_HALF = 1e-3, 0.1
TRIALS = 3  # in half precision

# by model, and by the attention implementation that it prefills with
_known: WeakKeyDictionary[Any, dict[str, str | None]] = WeakKeyDictionary()


def ragged_obstacle(model: Any) -> str | None:
    """Why rows of different length cannot share this model's forward passes; None if they can.

    Found once: two short prompts go through together, and each through the model alone.
    """
    found, attention = _known.setdefault(model, {}), str(model.config._attn_implementation)
    if attention not in found:
        with untouched(model), own_positions(model):
            found[attention] = _known_obstacle(model) or _tried(model)
    return found[attention]


def _known_obstacle(model: Any) -> str | None:
    config = model.config.get_text_config()
    capped = getattr(config, "attn_logit_softcapping", None)
    if capped and str(model.config._attn_implementation) == "sdpa":
        return "a cap on attention scores, which sdpa leaves out (eager attention does not)"
    layers = layers_of(model)
    if layers.obstacle is not None:
        return layers.obstacle
    return None if layers.cached else "no layer with keys and values"


@torch.inference_mode()
def _tried(model: Any) -> str | None:
    """In float32 the first prompts decide.

    In half precision a near tie in a router can part the two ways, so one pair of several that
    agrees is enough: what is wrong is wrong for every prompt.
    """
    exact = model.dtype == torch.float32
    found: str | None = None
    for trial in range(1 if exact else TRIALS):
        try:
            off = _difference(model, trial)
        except OUT_OF_MEMORY:
            raise  # no property of the model
        except Exception as error:  # noqa: BLE001  a family whose attention works otherwise
            reason = first_line(error)
            return f"attention that cannot be replaced ({type(error).__name__}: {reason})"
        if off <= (ROUNDING if exact else ROUNDING_HALF):
            return None
        found = f"rows that change each other's logits (by {off:.0%} in a trial)"
    return found


def _difference(model: Any, trial: int) -> float:
    """How far logits of two prompts that pass together are from those of each alone, of 1."""
    loaded = LoadedModel(model, None, model.device, frozenset(), owned=False)
    ids = torch.arange(sum(PROMPTS) + 2 * FOLLOWING, device=loaded.device)
    ids = (ids + 1000 * trial) * 7919 % model.config.get_text_config().vocab_size
    sequences = torch.split(ids, [n + FOLLOWING for n in PROMPTS])
    buckets, rows = [], []
    for n, sequence in zip(PROMPTS, sequences, strict=True):
        row = PromptRow(None, n, RandomStream(0, loaded.devices))
        (bucket,) = prefill(loaded, sequence[:n].tolist(), [row], FOLLOWING, False).buckets
        buckets.append(bucket)
        rows.append(Row(None, n))
    following = torch.stack([s[-FOLLOWING:] for s in sequences])
    together = forward(loaded, buckets, rows, following[:, :1])
    together = forward(loaded, buckets, rows, following[:, 1:])[:, -1].float()
    alone = torch.stack([_alone(model, sequence) for sequence in sequences]).float()
    off = torch.linalg.norm(together - alone, dim=-1) / torch.linalg.norm(alone, dim=-1)
    return float(off.nan_to_num(torch.inf).max())


def _alone(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits [vocab] after `ids`. With a cache, which some models need to share layers' entries."""
    cache = cache_argument(model, new_cache(model))
    out = model(input_ids=ids[None], **cache, use_cache=True)
    logits: torch.Tensor = out.logits[0, -1]
    return logits
