#!/bin/sh
# kvpress 0.5.5: NonCausalAttnPress pads the prompt to whole chunks of 256 and counts the padding, so the
# last tokens of most prompts score too high. CompactorPress uses the same scores.
#
# Its mask adds -1e-9 in place of minus infinity, and the padded queries spread a weight of 1 each over
# the last chunk.
#
# Seen:
#   kvpress 0.5.5 transformers 5.2.0
#   prompt 300: 44 queries give the last 44 keys a weight of 76
#   prompt 300, ratio 0.75: of its last 44 entries NonCausalAttn keeps 59%; 24% where padding does not count
#   prompt 300, ratio 0.75: of its last 44 entries Compactor keeps 45%; 28% where padding does not count
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

from kvpress import CompactorPress, NonCausalAttnPress

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


def unpadded(q, k, chunk_size):
    """The attention that each key gets from the queries of its chunk [batch, heads, n]."""
    found = []
    for q_part, k_part in zip(q.split(chunk_size, dim=2), k.split(chunk_size, dim=2)):
        weights = torch.softmax((q_part @ k_part.transpose(-1, -2)).float(), dim=-1)
        found.append(weights.sum(dim=-2))
    return torch.cat(found, dim=-1)


def kept_of_last_chunk(press, n, rule):
    """Of the entries in the last, padded chunk the share that is kept, over layers and heads."""
    scored, score = [], press.score

    def noting(*args, **kwargs):
        scored.append(score(*args, **kwargs))
        return scored[-1]

    press.score, own = noting, NonCausalAttnPress.non_causal_chunked_attn
    NonCausalAttnPress.non_causal_chunked_attn = staticmethod(rule)
    torch.manual_seed(0)  # Compactor draws its sketch
    try:
        compressed(press, prompt(n))
    finally:
        NonCausalAttnPress.non_causal_chunked_attn = staticmethod(own)
    kept = torch.cat([s.topk(int(n * 0.25), dim=-1).indices for s in scored])
    last = n - n % 256
    return (kept >= last).float().sum().item() / (kept.shape[0] * kept.shape[1] * (n - last))


theirs = NonCausalAttnPress.non_causal_chunked_attn
q, k = torch.randn(2, 1, 1, 300, 16, generator=torch.Generator().manual_seed(0))
weight = theirs(q, k, 256)[0, 0, 256:].sum().item()
print(f"prompt 300: 44 queries give the last 44 keys a weight of {weight:.0f}")
more = []
for name, make in (("NonCausalAttn", NonCausalAttnPress), ("Compactor", CompactorPress)):
    as_is = kept_of_last_chunk(make(0.75), 300, theirs)
    without = kept_of_last_chunk(make(0.75), 300, unpadded)
    print(f"prompt 300, ratio 0.75: of its last 44 entries {name} keeps {as_is:.0%}; {without:.0%} "
          "where padding does not count")
    more.append(as_is > 1.3 * without)
sys.exit(0 if weight > 50 and all(more) else 1)
PYTHON
