#!/bin/sh
# transformers 5.2.0: LongRoPE in a model with rotary parameters for each type of layers (Gemma 3) fails beyond
# the original length: the second evaluation in one forward pass raises UnboundLocalError.
#
# `hasattr(self, "full_attention_long_inv_freq")` is true then, and the local variable was never set. Without
# layer types the check asks for `None_long_inv_freq`, is never true, and the frequencies are computed anew at
# every call. 5.24.0 has neither fault.
#
# Seen:
#   transformers 5.2.0
#   90 tokens: runs
#   200 tokens: UnboundLocalError: cannot access local variable 'long_inv_freq' where it is not associated with a value
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
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

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


rope = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 100, "factor": 4.0,
}
config = Gemma3TextConfig(
    **SIZES, head_dim=16, sliding_window=64, layer_types=["sliding_attention", "full_attention"] * 2,
    rope_parameters={
        "full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
)
model = Gemma3ForCausalLM(config).eval()
model(prompt(90))
print("90 tokens: runs")
try:
    model(prompt(200))
except UnboundLocalError as error:
    print(f"200 tokens: UnboundLocalError: {error}")
    sys.exit(0)
print("200 tokens: runs")
sys.exit(1)
PYTHON
