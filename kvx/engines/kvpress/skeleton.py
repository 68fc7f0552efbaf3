"""A model without weights, built from its configuration alone, and what presses miss in it.

The modules are transformers' own, on the meta device: what a press reads of them (projections, head
sizes, the rotary embedding) is there, numbers are not.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3PreTrainedModel,
)
from transformers.models.phi3.modeling_phi3 import Phi3Attention

from kvx.config.language_model import ModelConfig
from kvx.config.model_features import ModelFeature
from kvx.data.kv_layout import WINDOWED
from kvx.data.model_folder import files_of
from kvx.engines.kvpress.architecture import decoder_of
from kvx.engines.kvpress.positions import scales_by_length


def skeleton_of(config: ModelConfig) -> Any:
    """The model of `config.path`, as text model, on the meta device.

    Raises whatever transformers raises for a model that it does not know.
    """
    files = files_of(config)
    extra: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if files.hub is not None:
        extra["revision"] = files.revision
    if files.gguf is not None:
        extra["gguf_file"] = files.gguf.name
    whole = AutoConfig.from_pretrained(files.hub or files.folder, **extra)
    failed: Exception | None = None
    for kind, part in (
        (AutoModelForCausalLM, whole),
        (AutoModelForImageTextToText, whole),
        (AutoModelForCausalLM, whole.get_text_config()),
    ):
        try:
            with torch.device("meta"):
                return kind.from_config(
                    copy.deepcopy(part), trust_remote_code=config.trust_remote_code
                )
        except Exception as error:  # noqa: BLE001  a part of several may be a model by itself
            failed = failed or error
    assert failed is not None
    raise failed


def missing_features(model: Any) -> dict[ModelFeature, str]:
    """What `model` lacks of what a press may require, and why: the end of a sentence."""
    kinds = [(module, kind) for module, kind in _layers(model) if module is not None]
    if not kinds:
        return dict.fromkeys(ModelFeature, "the model has no attention layer that kvx knows")
    full = [module for module, kind in kinds if kind == "full"]
    attention = full[0] if full else kinds[0][0]
    checks: dict[ModelFeature, Callable[[Any, Any], str | None]] = {
        ModelFeature.queries: _no_queries,
        ModelFeature.window_attention: _no_queries,
        ModelFeature.projected_keys: _no_projected_keys,
        ModelFeature.future_rotary: _no_future_rotary,
        ModelFeature.output_projection: _no_output_projection,
        ModelFeature.head_size: _no_head_size,
        ModelFeature.equal_sizes: _no_head_size,
        ModelFeature.whole_rotation: _no_whole_rotation,
    }
    found = {feature: check(model, attention) for feature, check in checks.items()}
    found[ModelFeature.full_layers] = (
        None if full else "each layer of the model holds a window of it"
    )
    found[ModelFeature.uniform_layers] = _no_uniform_layers(model)
    found[ModelFeature.replay] = _no_replay(model)
    return {feature: why for feature, why in found.items() if why is not None}


def caches_latents(model: Any) -> bool:
    """Whether keys and values are made from what the cache returns, as in later transformers."""
    for module, _ in _layers(model):
        if module is not None and hasattr(module, "kv_b_proj"):
            code = inspect.getsource(type(module).forward)
            expanded = max(code.find(call) for call in ("kv_b_proj(", "expand_kv("))
            return -1 < code.find(".update(") < expanded
    return False


def not_separate(model: Any) -> str | None:
    """Why not every attention module has one layer's entries for itself; None if each has."""
    found = [(module, kind) for module, kind in _layers(model) if module is not None]
    if any(kind == "shared" for _, kind in found):
        return "the model has layers that read the entries of another layer"
    if len({id(module) for module, _ in found}) < len(found):
        return "layers of the model share their weights"
    return None


def _layers(model: Any) -> Iterator[tuple[Any, str]]:
    """Each layer's attention module, and its kind: full, windowed, shared or recurrent."""
    config = model.config.get_text_config()
    layers = list(getattr(decoder_of(model), "layers", None) or ())
    kinds = list(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    for number, layer in enumerate(layers):
        attention = _attention_of(layer)
        kind = kinds[number] if number < len(kinds) else WINDOWED[0] if window else None
        if attention is None or "linear" in str(kind):
            yield None, "recurrent"
        elif kind in WINDOWED:
            yield attention, "windowed"
        elif getattr(attention, "is_kv_shared_layer", False):
            yield attention, "shared"
        else:
            yield attention, "full"
        if attention is not None and (hasattr(layer, "mamba") or hasattr(layer, "mamba_decoder")):
            yield None, "recurrent"


def _attention_of(layer: Any) -> Any | None:
    """The attention module of a layer, wherever its family keeps it."""
    if (own := getattr(layer, "self_attn", None)) is not None:
        return own
    named = (m for m in layer.modules() if type(m).__name__.endswith("Attention"))
    return next(named, None)


def _head_dim(attention: Any) -> int | None:
    found = getattr(attention, "head_dim", None)
    return found if isinstance(found, int) else None


def _no_queries(model: Any, attention: Any) -> str | None:
    projection, size = getattr(attention, "q_proj", None), _head_dim(attention)
    if size is None or _is_latent(attention):
        return "the model makes queries and keys from a latent vector"
    if projection is None and not isinstance(attention, Phi3Attention):
        return "the model's attention has no q_proj"
    heads = model.config.get_text_config().num_attention_heads
    if projection is not None and projection.out_features != heads * size:
        return "the model's q_proj makes a gate beside the queries"
    return _no_whole_rotary(model, size)


def _no_projected_keys(model: Any, attention: Any) -> str | None:
    if _is_latent(attention):
        return "the model makes keys from a latent vector"
    projected = hasattr(attention, "k_proj") or isinstance(attention, Phi3Attention)
    return None if projected else "the model's attention has no k_proj"


def _no_future_rotary(model: Any, attention: Any) -> str | None:
    rotary, size = getattr(decoder_of(model), "rotary_emb", None), _head_dim(attention)
    if rotary is not None and isinstance(getattr(rotary, "rope_type", None), dict):
        return "the model's layers have rotary embeddings of several types"
    return None if size is None else _no_whole_rotary(model, size)


def _no_whole_rotation(model: Any, attention: Any) -> str | None:
    """Why keys cannot be turned by `inv_freq` as kvpress turns them."""
    rotary, size = getattr(decoder_of(model), "rotary_emb", None), _head_dim(attention)
    if size is None or _is_latent(attention):
        return "the model turns a part of a key only"
    if rotary is None:
        return "the model has no rotary embedding"
    frequencies = getattr(rotary, "inv_freq", None)
    if frequencies is None:
        return "the model's layers have rotary embeddings of several types"
    if (why := _no_whole_rotary(model, size)) is not None and "complex" in why:
        return why
    wide = 2 * frequencies.shape[-1]
    return None if wide == size else f"the model's rotary embedding has {wide} of {size} dimensions"


def _no_whole_rotary(model: Any, size: int) -> str | None:
    """Why its rotary embedding is not one that turns all dimensions of a head by pairs of halves.

    It is computed for a few positions: sizes and types are what kvpress's code depends on.
    """
    rotary = getattr(decoder_of(model), "rotary_emb", None)
    if rotary is None:
        return "the model has no rotary embedding"
    config = model.config.get_text_config()
    types = getattr(rotary, "rope_type", None)
    options = {"layer_type": next(iter(types))} if isinstance(types, dict) else {}
    with torch.device("cpu"):  # not as an argument: since transformers 5.20 there is none
        real = type(rotary)(copy.deepcopy(config))
    turned: Any = None
    for positions in (torch.arange(2)[None], torch.zeros(3, 1, 2, dtype=torch.long)):
        with contextlib.suppress(Exception):  # one position a token, or three
            turned = real(torch.zeros(1, 2, size), positions, **options)
            break
    if turned is None:
        return None  # a class of another kind: what it does is seen when it runs
    if isinstance(turned, torch.Tensor):
        return "the model's rotary embedding is complex"
    if turned[0].ndim > 3:
        return "the model's rotary embedding has three positions a token"
    wide = int(turned[0].shape[-1])
    return None if wide == size else f"the model's rotary embedding has {wide} of {size} dimensions"


def _no_output_projection(model: Any, attention: Any) -> str | None:
    projection, size = getattr(attention, "o_proj", None), _head_dim(attention)
    if projection is None:
        return "the model's attention has no o_proj"
    heads = model.config.get_text_config().num_attention_heads
    wide = getattr(projection, "in_features", None)
    return (
        None
        if size and wide == heads * size
        else "the model's o_proj is of another size than its heads"
    )


def _no_head_size(model: Any, attention: Any) -> str | None:
    if _is_latent(attention) or _head_dim(attention) is None:
        return "the model's are of different sizes"
    return None


def _is_latent(attention: Any) -> bool:
    """Whether keys and values are decompressed from one latent vector (MLA)."""
    return hasattr(attention, "kv_b_proj") or getattr(attention, "kv_lora_rank", None) is not None


def _no_uniform_layers(model: Any) -> str | None:
    kinds = {kind for _, kind in _layers(model)}
    if "recurrent" in kinds:
        return "the model has recurrent layers"
    if "windowed" in kinds:
        return "the model has layers that hold a window of the prompt"
    if "shared" in kinds:
        return "the model has layers that read the entries of another layer"
    return None


def _no_replay(model: Any) -> str | None:
    if isinstance(model, Gemma3PreTrainedModel):
        return "kvpress's code refuses Gemma 3"
    if not hasattr(model.config, "num_key_value_heads") or not hasattr(model.model, "layers"):
        return "the text model is one part of several"
    if any(scales_by_length(module) for module in model.modules()):
        return "the model scales queries by their position, which the second run changes"
    return None
