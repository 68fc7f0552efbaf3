#!/bin/sh
# kvpress 0.5.5: ChunkKV keeps another number of entries than its compression_ratio asks for.
#
# It keeps int(chunks * (1 - ratio)) whole chunks, at least one, and the last chunk may be short. In a batch,
# the chunks of the first sequence are kept for all.
#
# Seen:
#   kvpress 0.5.5 transformers 5.2.0
#   prompt 39, ratio 0.50: asked for 19, kept [20, 20, 20, 19] by layer
#   prompt 36, ratio 0.75: asked for 9, kept [20, 20, 20, 20] by layer
#   prompt 130, ratio 0.50: asked for 65, kept [60, 60, 50, 60] by layer
#   prompt 25, ratio 0.96: asked for 1, kept [20, 20, 20, 5] by layer
#   second sequence of a batch keeps what it keeps alone: False
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

from kvpress import ChunkKVPress, KnormPress

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


seen = {}
for n, ratio in ((39, 0.5), (36, 0.75), (130, 0.5), (25, 0.96)):
    cache = compressed(ChunkKVPress(KnormPress(ratio), chunk_length=20), prompt(n))
    kept = [layer.keys.shape[2] for layer in cache.layers]
    asked = max(1, int(n * (1 - ratio)))
    print(f"prompt {n}, ratio {ratio:.2f}: asked for {asked}, kept {kept} by layer")
    seen[n] = [k - asked for k in kept]
ids = torch.cat([prompt(200, 1), prompt(200, 2)])
both = compressed(ChunkKVPress(KnormPress(0.5)), ids)
alone = compressed(ChunkKVPress(KnormPress(0.5)), ids[1:])
same = all(
    b.keys.shape[2] == a.keys.shape[2] and torch.allclose(b.keys[1:], a.keys, atol=1e-4)
    for b, a in zip(both.layers, alone.layers)
)
print("second sequence of a batch keeps what it keeps alone:", same)
differs = any(abs(off) > 1 for offs in seen.values() for off in offs)
sys.exit(0 if differs and not same else 1)
PYTHON
