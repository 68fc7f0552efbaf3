"""Whether a model generates text from a KV cache, as its config.json tells; does not import torch.

`kvx.engines.kvpress.architecture` asks transformers too, which knows more kinds.
"""

from collections.abc import Mapping
from typing import Any

from kvx.data.model_folder import ModelFiles
from kvx.errors import UserError

ENCODER_DECODER = (
    "has an encoder and a decoder, and kvx compresses the cache of decoder-only models; give one"
)
ENCODER = (
    "is an encoder, which generates no text and keeps no KV cache; give a decoder-only language "
    "model"
)
TWO_WAY = "lets every token see later ones too, so it has no cache that grows with the text"
NO_CACHE = (
    "has no attention layers with a KV cache, so there is nothing to compress; give a model with "
    "attention in some of its layers"
)
# classes that encoders are saved as
ENCODERS = ("ForMaskedLM", "ForPreTraining")
# kinds of layers, in `layer_types`, that keep a state of constant size, or nothing
STATES = frozenset({"linear_attention", "mamba", "conv", "recurrent", "mlp", "moe"})
STATE_ONLY = ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm")


def check_kind(files: ModelFiles, name: str) -> None:
    """Raises `UserError` for a model without a KV cache of a decoder."""
    if (reason := unsuited(files.read_config())) is not None:
        raise UserError(f"model={name}: {reason}")


def unsuited(config: Mapping[str, Any]) -> str | None:
    """Why the model of a config.json has no decoder's KV cache; None where it does not say."""
    kind, classes = config.get("model_type"), config.get("architectures")
    own = [str(c) for c in classes] if isinstance(classes, list) else []
    reason = None
    if config.get("is_encoder_decoder"):
        reason = ENCODER_DECODER
    elif own and all(c.endswith(ENCODERS) for c in own) and not config.get("is_decoder"):
        reason = ENCODER
    elif kind in STATE_ONLY or _only_states(config):
        reason = NO_CACHE
    return None if reason is None else named(kind, reason)


def _only_states(config: Mapping[str, Any]) -> bool:
    kinds = config.get("layer_types")
    return isinstance(kinds, list) and len(kinds) > 0 and STATES.issuperset(map(str, kinds))


def named(kind: object, reason: str) -> str:
    """The reason, after the kind of model that it is given for."""
    return f"{kind if kind is not None else 'it'} {reason}"
