#!/bin/sh
# kvpress 0.5.5: LagKV below n_sink + 2 * lag_size = 260 prompt tokens is StreamingLLM, and where no more is
# kept than sinks, last partition and what follows it, it never looks at keys or values.
#
# Below 260 tokens its score grows with the position. Above, 4 sinks and the last 128 to 255 entries all
# score 1.0: at smaller budgets ties decide which of them stay.
#
# Seen:
#   kvpress 0.5.5 transformers 5.2.0
#   prompt 250, ratio 0.5: the positions kept are StreamingLLM's: True
#   prompt 300, ratio 0.5: 172 entries score 1.0, 150 are kept; other keys and values, same positions: True
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

from kvpress import LagKVPress, StreamingLLMPress

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


def positions(press, n, seed):
    states = torch.randn(2, 1, 2, n, 16, generator=torch.Generator().manual_seed(seed))
    scores = press.score(None, None, *states, None, {})
    kept = max(1, int(n * (1 - press.compression_ratio)))
    return scores.topk(kept, dim=-1).indices.sort().values, scores


lagkv, scores = positions(LagKVPress(0.5), 250, 0)
streaming, _ = positions(StreamingLLMPress(0.5), 250, 0)
same = torch.equal(lagkv, streaming)
print("prompt 250, ratio 0.5: the positions kept are StreamingLLM's:", same)
one, scores = positions(LagKVPress(0.5), 300, 0)
other, _ = positions(LagKVPress(0.5), 300, 1)
tied = int((scores[0, 0] == 1).sum())
blind = torch.equal(one, other)
print(f"prompt 300, ratio 0.5: {tied} entries score 1.0, 150 are kept; other keys and values, "
      f"same positions: {blind}")
sys.exit(0 if same and blind and tied > 150 else 1)
PYTHON
