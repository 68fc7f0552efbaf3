"""Families whose queries kvpress recomputes as the model makes them, known from `config.json`.

Only ids depend on it: a point of another family, whose press ranks by queries, is not the point
that an older kvx stored under the same configuration. What a press is given is measured
(`kvx.engines.kvpress.agreement`).
"""

from typing import Any

from kvx.config.schema import ModelConfig
from kvx.data.model_folder import files_of
from kvx.data.tokenizer import model_hash

SAME = frozenset(
    {
        "gemma", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen2_moe", "qwen3", "seed_oss",
        "starcoder2",
    }
)  # fmt: skip
# classes that recompute queries, keys or rotations, wherever a press's method names them
RECOMPUTING = (
    "SnapKVPress", "TOVAPress", "PyramidKVPress", "FinchPress", "SimLayerKVPress", "KVzipPress",
    "NonCausalAttnPress", "ThinKPress", "ExpectedAttentionPress", "ExpectedAttentionStatsPress",
    "CapPress", "LeverageScorePress", "CompactorPress", "CriticalKVPress", "CriticalAdaKVPress",
)  # fmt: skip


def recomputes(method: Any) -> bool:
    """Whether a press's method names a class that does."""
    if isinstance(method, dict):
        target = str(method.get("_target_", "")).rpartition(".")[2]
        return target in RECOMPUTING or any(map(recomputes, method.values()))
    return isinstance(method, list) and any(map(recomputes, method))


_known: dict[str, bool] = {}  # by a model's hash


def is_as_recomputed(model: ModelConfig) -> bool:
    """Whether kvpress recomputes this model's queries rightly. Raises `UserError`."""
    content = model_hash(model)
    if content not in _known:
        config = files_of(model).read_text_config()
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        part = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
        _known[content] = config.get("model_type") in SAME and part == 1.0
    return _known[content]
