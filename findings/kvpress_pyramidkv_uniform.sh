#!/bin/sh
# kvpress 0.5.5: PyramidKV gives every layer the same budget, SnapKV's very entries, wherever fewer than
# half of the prompt and fewer than beta * window_size (20 * 64 = 1,280) entries are kept.
#
# Its narrowest layer would be smaller than the window there, and the code falls back to SnapKV without a
# word. So PyramidKV's figures at budgets of 0.1 or 0.25 on prompts below about 5,000 tokens are SnapKV's.
#
# Seen (entries by layer):
#   kvpress 0.5.5 transformers 5.2.0
#   prompt 1000, ratio 0.4: [936, 712, 488, 264]
#   prompt 1000, ratio 0.6: [400, 400, 400, 400]
#       the keys are SnapKV's: True
#   prompt 4000, ratio 0.75: [1000, 1000, 1000, 1000]
#       the keys are SnapKV's: True
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
import sys

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from kvpress import PyramidKVPress, SnapKVPress

print("kvpress", importlib.metadata.version("kvpress"), "transformers", transformers.__version__)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=8192, initializer_range=0.2,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)).eval()


def prompt(n, seed=0):
    return torch.randint(3, 300, (1, n), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def compressed(press, ids):
    """The cache after `press` has compressed the prompt `ids` [batch, n]."""
    cache = DynamicCache()
    with press(model):
        model.model(input_ids=ids, past_key_values=cache)
    return cache


right = True
for n, ratio, pyramid in ((1000, 0.4, True), (1000, 0.6, False), (4000, 0.75, False)):
    mine = compressed(PyramidKVPress(ratio), prompt(n))
    kept = [layer.keys.shape[2] for layer in mine.layers]
    print(f"prompt {n}, ratio {ratio}: {kept}")
    right &= (len(set(kept)) > 1) == pyramid
    if not pyramid:
        snapkv = compressed(SnapKVPress(ratio), prompt(n))
        same = all(torch.equal(a.keys, b.keys) for a, b in zip(mine.layers, snapkv.layers))
        print("    the keys are SnapKV's:", same)
        right &= same
sys.exit(0 if right else 1)
PYTHON
