#!/bin/sh
# transformers 5.2.0: the linear-attention layers of Qwen3-Next ignore the state that the cache holds when they
# get more than one token. A prompt fed in two parts has other logits than in one; token by token it is right.
#
# So whatever passes several tokens behind a filled cache is wrong without an error: chunked prefills, a
# question behind a shared context, drafts to verify.
#
# Seen:
#   transformers 5.2.0
#   60 + 40 tokens: logits differ from one pass by 0.5
#   96 + 4 tokens: logits differ from one pass by 3.9
#   96 + 1 + 1 + 1 + 1 tokens: logits differ from one pass by 5.5e-06
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
    "$python" -m pip install -q torch==2.13.0 transformers==5.2.0
fi
"$python" - <<'PYTHON'
import sys

import torch
import transformers
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextDynamicCache

print("transformers", transformers.__version__)
SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
    "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}
torch.manual_seed(0)
torch.set_grad_enabled(False)


def prompt(n, seed=0):
    return torch.randint(3, 300, (1, n), generator=torch.Generator().manual_seed(seed))


config = Qwen3NextConfig(
    **SIZES, head_dim=16, layer_types=["linear_attention", "full_attention"] * 2, linear_num_key_heads=2,
    linear_num_value_heads=4, linear_key_head_dim=16, linear_value_head_dim=16, num_experts=4,
    num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32,
)
model = Qwen3NextForCausalLM(config).eval()


def logits(*parts):
    """After a prompt of 100 tokens that passes in `parts` of so many tokens."""
    cache, start = Qwen3NextDynamicCache(config=config), 0
    for ids in torch.split(prompt(100), parts, dim=1):
        positions = torch.arange(start, start + ids.shape[1])[None]
        out = model(input_ids=ids, past_key_values=cache, position_ids=positions, use_cache=True)
        start += ids.shape[1]
    return out.logits[0, -1]


whole = logits(100)
found = {}
for name, parts in (("60 + 40", [60, 40]), ("96 + 4", [96, 4]), ("96 + 1 + 1 + 1 + 1", [96, 1, 1, 1, 1])):
    found[name] = (logits(*parts) - whole).abs().max().item()
    print(f"{name} tokens: logits differ from one pass by {found[name]:.2g}")
wrong, right = min(found["60 + 40"], found["96 + 4"]), found["96 + 1 + 1 + 1 + 1"]
sys.exit(0 if wrong > 0.1 and right < 1e-3 else 1)
PYTHON
