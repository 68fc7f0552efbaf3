#!/bin/sh
# kvpress 0.5.5: KeyRerotation turns the kept keys to the positions 0 to kept - 1. Its pipeline then goes on
# at the cache's length; transformers' generate() goes on at the length of the prompt.
#
# So one press has two behaviours: with `press(model): model.generate(...)`, as kvpress's README shows it, the
# text stands as far from the kept entries as everything that was dropped between them.
#
# Seen:
#   kvpress 0.5.5 transformers 5.2.0
#   prompt 300, kept 90: generate() asks for position 300 next, the pipeline for 90
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

from kvpress import KeyRerotationPress, KnormPress
from kvpress.pipeline import KVPressTextGenerationPipeline

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


asked = []
model.model.rotary_emb.register_forward_pre_hook(
    lambda module, args, kwargs: asked.append(int((kwargs.get("position_ids", args[-1]))[0, 0])),
    with_kwargs=True,
)
press = KeyRerotationPress(KnormPress(0.7))
with torch.inference_mode(), press(model):
    model.generate(prompt(300), max_new_tokens=3, do_sample=False)
generate = asked[1]
asked.clear()


class Words:
    """A tokenizer of numbers, for the pipeline."""

    chat_template, bos_token, eos_token_id = None, "", 2

    def encode(self, text, **_):
        return torch.tensor([[int(word) for word in text.split()]])

    def decode(self, ids, **_):
        return " ".join(str(i) for i in ids.tolist())


pipeline = KVPressTextGenerationPipeline.__new__(KVPressTextGenerationPipeline)
pipeline.model, pipeline.tokenizer = model, Words()
inputs = {"context_ids": prompt(300), "questions_ids": [prompt(4, 1)]}
with torch.inference_mode():
    pipeline._forward(inputs, max_new_tokens=3, press=press)
theirs = asked[1]
print(f"prompt 300, kept 90: generate() asks for position {generate} next, the pipeline for {theirs}")
sys.exit(0 if (generate, theirs) == (300, 90) else 1)
PYTHON
