#!/bin/sh
# kvpress 0.5.5: SnapKV scores by attention that it recomputes from the hidden states as Llama or Qwen3 would.
# On Qwen3-MoE and OLMo 2 it skips the norm of the queries, on SmolLM3 it rotates the queries of layers without
# rotary embeddings. It runs there with a warning only, and ranks by weights that the model never had.
#
# TOVA, PyramidKV, AdaKV and CriticalKV around SnapKV, and others use the same function.
#
# Seen:
#   kvpress 0.5.5 transformers 5.2.0
#   LlamaForCausalLM: largest difference of attention weights 0
#   Qwen3ForCausalLM: largest difference of attention weights 0
#   Qwen3MoeForCausalLM: largest difference of attention weights 0.21
#   Olmo2ForCausalLM: largest difference of attention weights 0.9
#   SmolLM3ForCausalLM: largest difference of attention weights 0.75
#
# Needs a Python of 3.11 or 3.12; makes an environment of its own, or takes FINDINGS_PYTHON, a python that
# has these packages. Exits with 1 if the behaviour is another one.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    "${PYTHON:-python3}" -m venv "$here/venv"
    python="$here/venv/bin/python"
    "$python" -m pip install -q torch==2.13.0 transformers==5.2.0 kvpress==0.5.5
fi
"$python" - <<'PYTHON'
import importlib.metadata
import logging
import sys

import torch
import transformers
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from kvpress import SnapKVPress

print("kvpress", importlib.metadata.version("kvpress"), "transformers", transformers.__version__)
logging.disable(logging.WARNING)  # kvpress: not tested on this class
SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
    "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}
torch.manual_seed(0)
torch.set_grad_enabled(False)


def prompt(n, seed=0):
    return torch.randint(3, 300, (1, n), generator=torch.Generator().manual_seed(seed))


WINDOW = 16


def largest_difference(model):
    """Of the weights of the last tokens, between the model's own and those that SnapKV recomputes."""
    for name, weight in model.named_parameters():
        if "norm" in name:  # as trained: not all ones
            weight.add_(torch.randn_like(weight) * 0.1)
    model.eval().set_attn_implementation("eager")
    cache, keys, worst = DynamicCache(), {}, []
    update = cache.update

    def remember(new, values, layer, *rest, **options):
        keys[layer] = new
        return update(new, values, layer, *rest, **options)

    def compare(module, args, kwargs, output):
        recomputed = SnapKVPress.compute_window_attention(
            module, kwargs["hidden_states"], keys[module.layer_idx], WINDOW, kwargs["position_embeddings"]
        )
        worst.append((recomputed - output[1][:, :, -WINDOW:, :-WINDOW]).abs().max().item())

    cache.update = remember
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(compare, with_kwargs=True)
    model.model(prompt(200), past_key_values=cache)
    return max(worst)


experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
right = [LlamaForCausalLM(LlamaConfig(**SIZES)), Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16))]
wrong = [
    Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts)),
    Olmo2ForCausalLM(Olmo2Config(**SIZES)),
    SmolLM3ForCausalLM(SmolLM3Config(**SIZES)),
]
found = {type(model).__name__: largest_difference(model) for model in [*right, *wrong]}
for name, difference in found.items():
    print(f"{name}: largest difference of attention weights {difference:.2g}")
ok = all(found[type(m).__name__] < 1e-5 for m in right)
sys.exit(0 if ok and all(found[type(m).__name__] > 0.1 for m in wrong) else 1)
PYTHON
