"""The KV cache of a model as its config.json tells, without loading it; does not import torch.

`kvx.engines.kvpress.layers` measures the same on the model itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from kvx.config.language_model import ModelConfig
from kvx.data.model_folder import files_of
from kvx.data.model_kind import STATES

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
WINDOWED = (SLIDING, CHUNKED, "hybrid_sliding")
# one layer in so many is full, where an older config.json does not say
PATTERNS = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}


@dataclass(frozen=True)
class KVLayout:
    """What one row holds. States of linear attention and the like are not counted.

    `entry_bytes` are one token's in all layers of full attention; `windows` those in each layer
    with a window, and its length in tokens.
    """

    entry_bytes: int
    windows: tuple[tuple[int, int], ...] = ()

    def bytes(self, kept: int, prompt_tokens: int) -> int:
        """With `kept` entries of a prompt in layers of full attention."""
        held = sum(size * min(prompt_tokens, window - 1) for size, window in self.windows)
        return kept * self.entry_bytes + held


def kv_layout(model: ModelConfig) -> KVLayout | None:
    """None for a model whose config.json does not say. Raises `UserError` if it is none."""
    config = files_of(model).read_text_config()
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    item = ITEM_BYTES.get(str(dtype) if model.dtype == "auto" else model.dtype)
    kinds, values = _kinds(config), _values(config)
    if item is None or kinds is None or values is None:
        return None
    kinds = kinds[: len(kinds) - int(config.get("num_kv_shared_layers") or 0)]
    size = values * item
    windows = [_window(config, kind) for kind in kinds if kind in WINDOWED]
    full = sum(kind not in WINDOWED and kind not in STATES for kind in kinds)
    full += windows.count(None)
    return KVLayout(full * size, tuple((size, window) for window in windows if window is not None))


def _values(config: Mapping[str, Any]) -> int | None:
    """Numbers in one token's keys and values of a layer."""
    heads = config.get("num_attention_heads")
    if config.get("kv_lora_rank") and config.get("v_head_dim") and heads:
        rotated = config.get("qk_rope_head_dim", 0)
        if _caches_latents(config):
            return int(config["kv_lora_rank"] + rotated)
        return int(heads * (config.get("qk_nope_head_dim", 0) + rotated + config["v_head_dim"]))
    kv_heads = config.get("num_key_value_heads") or heads
    size = config.get("attention_head_dim") or config.get("head_dim")
    if size is None and heads and config.get("hidden_size"):
        size = config["hidden_size"] // heads
    return int(2 * kv_heads * size) if kv_heads and size else None


def _caches_latents(config: Mapping[str, Any]) -> bool:
    """Whether transformers caches tokens' latents, as since 5.15, not each head's keys and values.

    Models with an indexer (deepseek_v32, glm_moe_dsa) do since 5.19.
    """
    major, minor = (int(part) for part in version("transformers").split(".")[:2])
    return (major, minor) >= ((5, 19) if config.get("index_topk") else (5, 15))


def _kinds(config: Mapping[str, Any]) -> list[str] | None:
    """The kind of each layer, by the field that a family says it in."""
    n = config.get("num_hidden_layers")
    if not isinstance(n, int):
        return None
    for name in ("layer_types", "layers_block_type"):
        if isinstance(told := config.get(name), list):
            return [str(kind) for kind in told]
    for name in ("attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids"):
        if isinstance(told := config.get(name), list):
            return [FULL if i in told else "mamba" for i in range(n)]
    if period := config.get("attn_layer_period"):
        at = config.get("attn_layer_offset", 0)
        return [FULL if i % period == at else "mamba" for i in range(n)]
    if every := config.get("full_attention_interval"):
        return [FULL if (i + 1) % every == 0 else "linear_attention" for i in range(n)]
    if config.get("attention_chunk_size") and isinstance(config.get("no_rope_layers"), list):
        return [CHUNKED if rotary else FULL for rotary in config["no_rope_layers"]] or None
    if not config.get("sliding_window") or config.get("use_sliding_window") is False:
        return [FULL] * n
    every = config.get("sliding_window_pattern") or PATTERNS.get(str(config.get("model_type")))
    if isinstance(every, int):
        return [FULL if (i + 1) % every == 0 else SLIDING for i in range(n)]
    first = config.get("max_window_layers") if config.get("use_sliding_window") else 0
    return [FULL if i < (first or 0) else SLIDING for i in range(n)]


def _window(config: Mapping[str, Any], kind: str) -> int | None:
    found = config.get("attention_chunk_size" if kind == CHUNKED else "sliding_window")
    return found if isinstance(found, int) else None
