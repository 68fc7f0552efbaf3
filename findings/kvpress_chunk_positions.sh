#!/bin/sh
# kvpress 0.5.5: ChunkPress turns the queries of every chunk to positions at the prompt's end.
#
# It hands the press inside a slice of hidden states, keys and values, and the rotary embedding of the whole
# prompt. SnapKV rotates its window's queries by the last positions of that. In the first chunk of 256 of a prompt
# of 1,024 tokens, they are 768 positions too far from their keys; a last chunk no longer than the window raises.
#
# Seen:
#   kvpress 0.5.5 transformers 5.2.0
#   kept as with each chunk's own positions: 48% 61% 53% 100%
#   a last chunk of 16 tokens: Query length 16 should be greater than the window size 16
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

from kvpress import ChunkPress, SnapKVPress

N, CHUNK, WINDOW = 1024, 256, 16

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



class Meant(SnapKVPress):
    """SnapKV that slices the rotary embedding as its chunk is sliced."""

    seen = 0

    def score(self, module, hidden_states, keys, values, attentions, kwargs):
        start = self.seen % N
        self.seen += hidden_states.shape[1]
        part = tuple(t[:, start : start + hidden_states.shape[1]] for t in kwargs["position_embeddings"])
        return super().score(
            module, hidden_states, keys, values, attentions, {**kwargs, "position_embeddings": part}
        )


def chunks(press):
    """Kept positions by chunk."""
    kept = positions(ChunkPress(press, chunk_length=CHUNK))
    return [{i for i in kept if i // CHUNK == chunk} for chunk in range(N // CHUNK)]


ours = chunks(SnapKVPress(0.75, window_size=WINDOW))
meant = chunks(Meant(0.75, window_size=WINDOW))
shares = [len(a & b) / len(b) for a, b in zip(ours, meant)]
print("kept as with each chunk's own positions:", " ".join(f"{share:.0%}" for share in shares))
ids = ids[:, : N - CHUNK + WINDOW]
try:
    compressed(ChunkPress(SnapKVPress(0.75, window_size=WINDOW), chunk_length=CHUNK))
    said = ""
except AssertionError as error:
    said = str(error)
print(f"a last chunk of {WINDOW} tokens: {said or 'runs'}")
sys.exit(0 if shares[-1] == 1 and min(shares) < 1 and "should be greater" in said else 1)
PYTHON
