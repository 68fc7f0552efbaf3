"""Tiny random models of many families, whose greedy choices are decisive.

`FAMILIES` is a table of configurations; `make` builds a model from one. Windows and chunks have
256 tokens, and what depends on a model's original length changes there too. Tokens are those of the
embedded tokenizer; ids that it lacks are never chosen.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from tests.models import TINY, WEIGHTS

VOCABULARY, KNOWN = 336, 326  # rows of the embedding; tokens that the tokenizer has
WINDOW = 256
SCALE = 0.2  # standard deviation of the weights
Fields = dict[str, Any]

BASE: Fields = {
    "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
WIDE: Fields = {"head_dim": 32}  # not hidden size / heads
FOUR: Fields = {"num_hidden_layers": 4}
SLIDING: Fields = {"sliding_window": WINDOW}
FULL: Fields = {"sliding_window": None}
EXPERTS: Fields = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32
}  # fmt: skip
ROUTED: Fields = {
    **EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
LATENT: Fields = {
    **ROUTED, "num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 32,
    "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 24,
}  # fmt: skip
DELTA: Fields = {  # gated delta rule
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}  # fmt: skip
MAMBA: Fields = {
    "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1,
    "mamba_chunk_size": 64,
}  # fmt: skip
VISION: Fields = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


def _types(*kinds: str, n: int = 4) -> Fields:
    layers = [f"{kinds[i % len(kinds)]}_attention" for i in range(n)]
    return {"num_hidden_layers": n, "layer_types": layers}


def _rope(kind: str, **fields: Any) -> Fields:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **fields}}


MIXED = {**_types("sliding", "full"), **SLIDING}
GEMMA: Fields = {**WIDE, "query_pre_attn_scalar": 32}
GEMMA3N: Fields = {
    **MIXED, **WIDE, "num_kv_shared_layers": 2, "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": VOCABULARY, "altup_num_inputs": 2, "laurel_rank": 8,
    "intermediate_size": [96] * 4, "activation_sparsity_pattern": [0.0] * 4,
}  # fmt: skip
LLAMA4: Fields = {
    **FOUR, **WIDE, "intermediate_size_mlp": 96, "num_local_experts": 2, "floor_scale": 100,
    "attn_scale": 0.5, "no_rope_layers": [1, 0, 1, 0], "interleave_moe_layer_step": 2,
    "attention_chunk_size": WINDOW,
}  # fmt: skip
LONGROPE = _rope(
    "longrope", short_factor=[1.0] * 8, long_factor=[1.0 + 0.5 * i for i in range(8)],
    original_max_position_embeddings=WINDOW, factor=4096 / WINDOW,
)  # fmt: skip
MINISTRAL3 = _rope(
    "yarn", factor=16.0, original_max_position_embeddings=128, beta_fast=32.0, beta_slow=1.0,
    mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.5,
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A configuration: its type, and the fields that differ from `BASE`.

    With a `vision` tower the fields are those of the text model inside; `whole` are the outer
    configuration's own. `scale` is the standard deviation of its weights, smaller where a model
    amplifies rounding. `in_parts`: a prompt that passes in two parts is not the same as in one:
    rotary embeddings depend on how long the sequence is by then, or rounding changes what an
    indexer selects. `new`: not in transformers 5.2.
    """

    model_type: str
    fields: Fields = field(default_factory=dict)
    vision: Fields | None = None
    whole: Fields = field(default_factory=dict)
    scale: float = SCALE
    in_parts: bool = False
    new: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", WIDE),
    "llama3_rope": Family(
        "llama", {"tie_word_embeddings": True, **WIDE, **_rope("llama3", factor=8.0,
        low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=128)},
    ),
    "llama_yarn": Family(
        "llama", {**WIDE, **_rope("yarn", factor=4.0, original_max_position_embeddings=128)},
    ),
    "llama_linear": Family("llama", {**WIDE, **_rope("linear", factor=4.0)}),
    "llama_dynamic": Family(
        "llama", {**WIDE, **_rope("dynamic", factor=4.0), "max_position_embeddings": WINDOW},
        in_parts=True,
    ),
    "mistral": Family("mistral", {**WIDE, **FULL}),
    "mistral_window": Family("mistral", {**WIDE, **SLIDING}),
    "ministral": Family("ministral", {**WIDE, **MIXED}),
    "ministral3": Family("ministral3", {**WIDE, **FULL, **MINISTRAL3}),
    "mixtral": Family("mixtral", {**WIDE, **FULL, **EXPERTS}),
    "phi3": Family("phi3", FULL),
    "phi3_window": Family("phi3", SLIDING),
    "phi3_partial": Family("phi3", {**FULL, **_rope("default", partial_rotary_factor=0.5)}),
    "phi3_longrope": Family(
        "phi3", {**FULL, **LONGROPE, "original_max_position_embeddings": WINDOW}, in_parts=True,
    ),
    "qwen2": Family("qwen2", {"use_sliding_window": False}),
    "qwen2_window": Family(
        "qwen2", {**SLIDING, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen2_moe": Family("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 64}),
    "qwen3": Family("qwen3", WIDE),
    "qwen3_window": Family(
        "qwen3", {**WIDE, **SLIDING, "use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3_moe": Family("qwen3_moe", {**WIDE, **EXPERTS}),
    "qwen3_next": Family(
        "qwen3_next", {**FOUR, **WIDE, **DELTA, **EXPERTS, "shared_expert_intermediate_size": 32},
        scale=0.1,
    ),
    "qwen3_5_text": Family("qwen3_5_text", {**FOUR, **WIDE, **DELTA}, scale=0.1),
    "gemma": Family("gemma", WIDE),
    "gemma2": Family("gemma2", {**GEMMA, **MIXED}),
    "gemma3_text": Family("gemma3_text", {**GEMMA, **MIXED}),
    "gemma3": Family(
        "gemma3", {**GEMMA, **MIXED}, VISION, {"mm_tokens_per_image": 4, "image_token_index": 330,
        "boi_token_index": 331, "eoi_token_index": 332},
    ),
    "gemma3n": Family("gemma3n_text", GEMMA3N),
    "gpt_oss": Family("gpt_oss", {**WIDE, **MIXED, **EXPERTS}),
    "gpt_oss_full": Family("gpt_oss", {**WIDE, **SLIDING, **EXPERTS, **_types("full", n=3)}),
    "glm4": Family("glm4", WIDE),
    "glm4_moe": Family("glm4_moe", {**WIDE, **ROUTED}),
    "olmo2": Family("olmo2"),
    "olmo3": Family("olmo3", {**MIXED}),
    "smollm3": Family("smollm3", {**FOUR, "no_rope_layer_interval": 2}),
    "granite": Family(
        "granite", {"logits_scaling": 4.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7,
        "embedding_multiplier": 3.0},
    ),
    "granite_hybrid": Family(
        "granitemoehybrid", {**MAMBA, **FOUR, "layer_types": ["mamba", "attention"] * 2,
        "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32},
        scale=0.1,
    ),
    "cohere": Family("cohere", {"logit_scale": 0.25}),
    "cohere2": Family("cohere2", {**WIDE, **MIXED, "logit_scale": 0.25}),
    "deepseek_v2": Family("deepseek_v2", {**LATENT, "q_lora_rank": None, "topk_method": "greedy"}),
    "deepseek_v3": Family("deepseek_v3", LATENT),
    "exaone4": Family("exaone4", {**MIXED, "sliding_window_pattern": 2}),
    "lfm2": Family("lfm2", {**FOUR, "layer_types": ["conv", "full_attention"] * 2}),
    "falcon_h1": Family("falcon_h1", {**WIDE, **MAMBA, "mamba_d_ssm": 128}),
    "bamba": Family("bamba", {**FOUR, **MAMBA, "attn_layer_indices": [1, 3]}),
    "jamba": Family(
        "jamba", {**FOUR, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1,
        "use_mamba_kernels": False, "mamba_d_state": 8, "mamba_dt_rank": 8},
    ),
    "zamba2": Family(
        "zamba2", {**FOUR, "layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1,
        "mamba_d_state": 16, "mamba_ngroups": 1, "n_mamba_heads": 8, "use_mem_rope": True,
        "attention_hidden_size": 128, "attention_head_dim": 32, "chunk_size": 64},
        scale=0.1, in_parts=True,
    ),
    "llama4": Family("llama4_text", LLAMA4),
    "llama4_full": Family("llama4_text", {**LLAMA4, **_types("full")}),
    "ernie4_5": Family("ernie4_5", WIDE),
    "minimax": Family(
        "minimax", {**WIDE, **_types("linear", "full"), "num_local_experts": 2,
        "num_experts_per_tok": 2},
    ),
    "seed_oss": Family("seed_oss", WIDE),
    "starcoder2": Family("starcoder2", FULL),
    "mistral3": Family(
        "mistral3", {**WIDE, **FULL, "model_type": "mistral"}, {**VISION, "model_type": "pixtral",
        "head_dim": 16}, {"image_token_index": 330},
    ),
    "qwen2_5_vl": Family(
        "qwen2_5_vl", {**_rope("default", mrope_section=[2, 3, 3]),
        "model_type": "qwen2_5_vl_text"}, {"hidden_size": 32, "intermediate_size": 32, "depth": 1,
        "num_heads": 2, "out_hidden_size": 64}, {"image_token_id": 330, "video_token_id": 331,
        "vision_start_token_id": 332, "vision_end_token_id": 333},
    ),
    "gemma4": Family(
        "gemma4_text", {**MIXED, **WIDE, "global_head_dim": 32, "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": VOCABULARY}, new=True,
    ),
    "qwen4_exp": Family(
        "qwen4_exp_text", {**FOUR, **WIDE, **DELTA, **EXPERTS,
        "shared_expert_intermediate_size": 32, "hc_count": 2, "hc_lowrank": 16,
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 32, "indexer_budget": 128,
        "indexer_compress_ratio": 16}, new=True, scale=0.1,
    ),
    "deepseek_v32": Family(
        "deepseek_v32", {**LATENT, "index_topk": 64, "index_head_dim": 32, "index_n_heads": 8},
        in_parts=True, new=True,
    ),
    "lfm3": Family(
        "lfm3", {**SLIDING, **WIDE, **FOUR, "layer_types": ["conv", "sliding_attention",
        "full_attention", "full_attention"]}, new=True,
    ),
    "kimi_linear": Family(
        "kimi_linear", {**LATENT, "q_lora_rank": None, **_types("linear", "full"),
        "linear_head_dim": 16, "linear_num_heads": 4}, new=True, scale=0.1,
    ),
    "olmo_hybrid": Family(
        "olmo_hybrid", {**_types("linear", "full"), **DELTA, "linear_num_key_heads": 4}, new=True,
    ),
    "nemotron_h": Family(
        "nemotron_h", {**WIDE, "layers_block_type": ["mamba", "attention", "mlp", "attention"],
        "ssm_state_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 1,
        "use_mamba_kernels": False, "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 32}, new=True, scale=0.1,
    ),
}  # fmt: skip


def available() -> list[str]:
    """The families that the installed transformers has."""
    return [name for name, family in FAMILIES.items() if family.model_type in CONFIG_MAPPING]


def make(name: str) -> Any:
    """The model in float32, the same at every call."""
    family = FAMILIES[name]
    fields = {**BASE, **family.fields}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family.vision is None:
            model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family.model_type](**fields))
        else:
            config = CONFIG_MAPPING[family.model_type](
                text_config=fields, vision_config=family.vision, **family.whole
            )
            model = AutoModelForImageTextToText.from_config(config)
    model = model.float().eval()
    _perturb(model, family.scale)
    stops = model.generation_config
    stops.bos_token_id, stops.eos_token_id, stops.pad_token_id = 1, 2, 0
    return model


def write(name: str, folder: Path) -> Path:
    """`folder` with the model's files and the embedded tokenizer's."""
    transformers.utils.logging.disable_progress_bar()
    make(name).save_pretrained(folder)
    for file in TINY.iterdir():
        if file.name not in (WEIGHTS, "config.json", "generation_config.json"):
            shutil.copy(file, folder)
    return folder


@torch.no_grad()
def _perturb(model: Any, scale: float) -> None:
    """Matrices of standard deviation `scale`; norms, sinks and biases that are not all the same."""
    draw = torch.Generator().manual_seed(0)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=draw)

    for name, weight in sorted(model.named_parameters()):
        if weight.ndim >= 2:
            weight.copy_(noise(weight) * scale)
        elif "sink" in name:
            weight.copy_(noise(weight) + 1.0)
        elif "norm" in name and not name.endswith("bias"):
            weight.add_(noise(weight) * 0.1)
        elif "bias" in name and "dt_bias" not in name:
            weight.copy_(noise(weight) * 0.1)
    model.get_output_embeddings().weight[KNOWN:] = 0.0
