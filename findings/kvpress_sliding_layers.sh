#!/bin/sh
# kvpress 0.5.5 leaves the sliding layers of Gemma3ForConditionalGeneration alone, and of no other class: on
# Gemma3ForCausalLM, GPT-OSS and every other model with windows it compresses them too, without an error.
#
# A sliding layer then holds half of its window, whose positions are the newest; what a figure calls "half of
# the cache" dropped entries that the published comparison on Gemma 3 keeps.
#
# Seen:
#   kvpress 0.5.5 transformers 5.2.0
#   Gemma3ForConditionalGeneration, prompt 300, window 64, ratio 0.5: [63, 150, 63, 150] entries by layer
#   Gemma3ForCausalLM, prompt 300, window 64, ratio 0.5: [31, 150, 31, 150] entries by layer
#   GptOssForCausalLM, prompt 300, window 64, ratio 0.5: [31, 150, 31, 150] entries by layer
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
    Gemma3Config,
    Gemma3ForCausalLM,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
)

from kvpress import KnormPress

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


MIXED = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"] * 2, "head_dim": 16}
VISION = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}
gemma = {**SIZES, **MIXED, "query_pre_attn_scalar": 16}
models = [
    Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=gemma, vision_config=VISION, mm_tokens_per_image=1)
    ),
    Gemma3ForCausalLM(Gemma3TextConfig(**gemma)),
    GptOssForCausalLM(GptOssConfig(**SIZES, **MIXED, num_local_experts=4, num_experts_per_tok=2)),
]
seen = []
for model in models:
    model.eval()
    cache = DynamicCache(config=model.config.get_text_config())
    body = getattr(model.model, "language_model", model.model)
    with KnormPress(0.5)(model):
        body(input_ids=prompt(300), past_key_values=cache)
    seen.append([layer.keys.shape[2] for layer in cache.layers])
    print(f"{type(model).__name__}, prompt 300, window 64, ratio 0.5: {seen[-1]} entries by layer")
alone, touched = [63, 150, 63, 150], [31, 150, 31, 150]
sys.exit(0 if seen == [alone, touched, touched] else 1)
PYTHON
