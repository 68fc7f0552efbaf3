"""Models on which kvx has always been right, known from `config.json`.

Only ids depend on it. A point of a family whose queries kvpress makes otherwise, or of a model
with windows, is not the point that an older kvx stored under the same configuration. What a press
is given is measured (`kvx.engines.kvpress.agreement`).
"""

from typing import Any

from kvx.config.language_model import ModelConfig
from kvx.data.model_folder import files_of
from kvx.data.tokenizer import model_hash

SAME = frozenset(
    {
        "gemma", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "seed_oss",
        "starcoder2",
    }
)  # fmt: skip
# what a press of kvpress computes itself, by class
QUERIES, KEYS, ANGLES, OUTPUT = "queries", "keys", "angles", "output"
RECOMPUTED: dict[str, tuple[str, ...]] = {
    "SnapKVPress": (QUERIES,), "TOVAPress": (QUERIES,), "PyramidKVPress": (QUERIES,),
    "FinchPress": (QUERIES,), "SimLayerKVPress": (QUERIES,), "NonCausalAttnPress": (QUERIES,),
    "KVzipPress": (QUERIES,), "ThinKPress": (QUERIES,), "ExpectedAttentionStatsPress": (ANGLES,),
    "ExpectedAttentionPress": (QUERIES, ANGLES), "CapPress": (QUERIES, ANGLES),
    "LeverageScorePress": (KEYS,), "CompactorPress": (QUERIES, KEYS),
    "CriticalKVPress": (OUTPUT,), "CriticalAdaKVPress": (OUTPUT,),
}  # fmt: skip


def recomputes(method: Any) -> bool:
    """Whether a press's method names a class of `RECOMPUTED`."""
    if isinstance(method, dict):
        target = str(method.get("_target_", "")).rpartition(".")[2]
        return target in RECOMPUTED or any(map(recomputes, method.values()))
    return isinstance(method, list) and any(map(recomputes, method))


# rotations that depend on how long the text is
MOVING = ("dynamic", "longrope")

_known: dict[str, tuple[bool, bool]] = {}  # by a model's hash


def is_as_recomputed(model: ModelConfig) -> bool:
    """Whether kvpress recomputes this model's queries rightly. Raises `UserError`."""
    return _of(model)[0]


def has_plain_layers(model: ModelConfig) -> bool:
    """Whether its layers are all alike: full attention, by position only. Raises `UserError`."""
    return _of(model)[1]


def _of(model: ModelConfig) -> tuple[bool, bool]:
    content = model_hash(model)
    if content not in _known:
        config = files_of(model).read_text_config()
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        part = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
        recomputed = config.get("model_type") in SAME and part == 1.0
        _known[content] = recomputed, _plain(config, rope)
    return _known[content]


def _plain(config: dict[str, Any], rope: dict[str, Any]) -> bool:
    windows = [config.get("sliding_window"), config.get("attention_chunk_size")]
    if not config.get("use_sliding_window", True):
        windows = []
    return (
        set(config.get("layer_types") or ["full_attention"]) == {"full_attention"}
        and not any(windows)
        and not config.get("attn_logit_softcapping")
        and rope.get("rope_type", rope.get("type")) not in MOVING
        and not rope.get("llama_4_scaling_beta")
        and not config.get("attn_temperature_tuning")
    )
