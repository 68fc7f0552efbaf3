"""What class a configuration stands for, known before any weight is read.

A model is built on torch's meta device, which takes milliseconds and no memory: where its layers
are, and whether they keep a KV cache, is then known of every class that transformers has.
"""

import inspect
from typing import Any

import torch
from torch import nn

from kvx.data.model_kind import ENCODER, ENCODER_DECODER, NO_CACHE, STATES, TWO_WAY, named
from kvx.errors import UserError

# what a layer's forward pass calls the cache it writes to, by version and age of the class
CACHES = {"past_key_values", "past_key_value", "layer_past", "cache"}
ELSEWHERE = (
    "keeps its layers where presses do not look for them (model.layers, or "
    "model.language_model.layers); give a model that kvpress can compress"
)


def decoder_of(model: Any) -> Any:
    """The stack of decoder layers: has `layers`, and `rotary_emb` where positions are rotary.

    Of a model for several kinds of input, the part for text. Where a model has its layers
    elsewhere, what stands in the decoder's place.
    """
    inner = getattr(model, "model", model)
    for found in (getattr(inner, "language_model", None), inner, _decoder(model)):
        if hasattr(found, "layers"):
            return found
    return inner


def auto_class(config: Any) -> Any:
    """The Auto class that loads `config` as a language model.

    Multimodal classes that transformers does not list among causal models serve for text: without
    images, they are one. Raises `UserError` for an encoder, and for what generates no text.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as auto

    kind, own = config.model_type, getattr(config, "auto_map", None) or {}
    encoder = type(config) in auto.MODEL_FOR_MASKED_LM_MAPPING
    if config.is_encoder_decoder:
        raise UserError(named(kind, ENCODER_DECODER))
    if getattr(config.get_text_config(), "use_bidirectional_attention", None) is True:
        raise UserError(named(kind, TWO_WAY))
    if "AutoModelForCausalLM" in own:
        return AutoModelForCausalLM
    if type(config) in auto.MODEL_FOR_CAUSAL_LM_MAPPING:
        if encoder and getattr(config, "is_decoder", None) is False:
            raise UserError(named(kind, ENCODER))
        return AutoModelForCausalLM
    if type(config) in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise UserError(
        named(kind, ENCODER)
        if encoder
        else named(kind, "is no language model that transformers can generate text with")
    )


def check_structure(auto: Any, config: Any) -> None:
    """Raises `UserError` for layers that are not where presses look, or keep no KV cache.

    A class that cannot be built without its weights is left to `from_pretrained`, and so is one
    that brings its own code.
    """
    if getattr(config, "auto_map", None):
        return
    try:
        with torch.device("meta"):
            model = auto.from_config(config)
    except Exception:  # noqa: BLE001  loading says what is wrong
        return
    if (reason := structure_obstacle(model)) is not None:
        raise UserError(named(config.model_type, reason))


def structure_obstacle(model: Any) -> str | None:
    """Why no press can compress a `model`, whose weights may be on the meta device."""
    decoder = decoder_of(model)
    if not keeps_cache(decoder if hasattr(decoder, "layers") else model):
        return NO_CACHE
    if not (hasattr(model, "model") and hasattr(decoder, "layers")):
        return ELSEWHERE
    visible = _seen_by_presses(model, decoder) or hasattr(decoder, "rotary_emb")
    return None if visible else ELSEWHERE


def keeps_cache(decoder: Any) -> bool:
    """Whether any layer writes keys and values to a cache that its caller hands in."""
    kinds = getattr(decoder.config.get_text_config(), "layer_types", None)
    if kinds:
        return not set(kinds) <= STATES
    return any(_attends(module) for module in decoder.modules())


def open_to_presses(model: Any) -> None:
    """Let kvpress find the decoder of a multimodal model that calls it otherwise.

    Not as a submodule: its weights would be there twice.
    """
    decoder = decoder_of(model)
    if hasattr(model, "model") and not _seen_by_presses(model, decoder):
        object.__setattr__(model.model, "language_model", decoder)


def _decoder(model: Any) -> Any:
    try:
        return model.get_decoder()
    except (AttributeError, NotImplementedError):
        return None


def _seen_by_presses(model: Any, decoder: Any) -> bool:
    return decoder is model.model or decoder is getattr(model.model, "language_model", None)


def _attends(module: nn.Module) -> bool:
    name = type(module).__name__
    if "Attention" not in name and "MLA" not in name:
        return False
    return bool(CACHES & set(inspect.signature(module.forward).parameters))
