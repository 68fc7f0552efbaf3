#!/bin/sh
# kvpress 0.5.5: in a ComposedPress, the second press takes the order of scores for the order of the text.
#
# A scorer press leaves the entries that it keeps in the order of its scores. The next press of the chain takes
# the last of them for the latest, and the first for the sinks: StreamingLLM behind Knorm keeps no latest token,
# and SnapKV behind it has the entries that Knorm liked least for its window.
#
# Seen:
#   kvpress 0.5.5 transformers 5.2.0
#   Knorm keeps 200 of 400 entries, StreamingLLM behind it 100 of these
#   of the 100 that are first or latest of Knorm's, the chain keeps 47
#   it keeps the four entries that Knorm ranked first, and those that it ranked last: True
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

from kvpress import ComposedPress, KnormPress, StreamingLLMPress

N = 400

print("kvpress", importlib.metadata.version("kvpress"), "transformers", transformers.__version__)
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=8192, initializer_range=0.2,
    bos_token_id=1, eos_token_id=2, pad_token_id=0,
)).eval()
ids = torch.randint(3, 300, (1, N), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def compressed(press):
    """The first layer's keys [KV heads, kept, 16] after `press`; None: all of them."""
    cache = DynamicCache()
    if press is None:
        model.model(input_ids=ids, past_key_values=cache)
    else:
        with press(model):
            model.model(input_ids=ids, past_key_values=cache)
    return cache.layers[0].keys[0]


full = compressed(None)


def positions(press):
    """Which positions of the prompt the first layer's first head keeps."""
    return set(torch.cdist(compressed(press)[0], full[0]).argmin(1).tolist())


first = positions(KnormPress(0.5))
both = positions(ComposedPress([KnormPress(0.5), StreamingLLMPress(0.5, n_sink=4)]))
meant = set(sorted(first)[:4] + sorted(first)[-(len(both) - 4):])
print(f"Knorm keeps {len(first)} of {N} entries, StreamingLLM behind it {len(both)} of these")
print(f"of the {len(meant)} that are first or latest of Knorm's, the chain keeps {len(both & meant)}")
norms = {i: float(full[0, i].norm()) for i in first}
ranked = sorted(first, key=norms.get)
by_rank = set(ranked[:4] + ranked[-(len(both) - 4):])
print("it keeps the four entries that Knorm ranked first, and those that it ranked last:", both == by_rank)
sys.exit(0 if both == by_rank != meant else 1)
PYTHON
