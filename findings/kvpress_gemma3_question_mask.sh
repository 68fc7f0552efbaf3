#!/bin/sh
# kvpress 0.5.5 on Gemma 3, a class that it supports: after compression, the tokens of the question see those
# that follow them.
#
# transformers takes the cache's length from its first layer, which slides and counts all tokens that passed;
# the full layers hold fewer. Their mask, made for that length, hides nothing of what is appended.
#
# Seen:
#   kvpress 0.5.5 transformers 5.2.0
#   no press: lengths [306, 306, 306, 306]; three later tokens move the first three's logits by 0
#   KnormPress(0.5): lengths [306, 156, 306, 156]; three later tokens move the first three's logits by 0.21
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
from transformers import DynamicCache, Gemma3Config, Gemma3ForConditionalGeneration

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
text = {**SIZES, **MIXED, "query_pre_attn_scalar": 16}
model = Gemma3ForConditionalGeneration(
    Gemma3Config(text_config=text, vision_config=VISION, mm_tokens_per_image=1)
).eval()
question, other = prompt(6, 1), prompt(6, 1)
other[0, 3:] = prompt(3, 2)  # the first three tokens are the same


def first_three(question, press):
    """Logits of the question's first three tokens, as kvpress's pipeline asks for them."""
    cache = DynamicCache(config=model.config.text_config)
    body = model.model.language_model
    if press is None:
        body(input_ids=prompt(300), past_key_values=cache)
    else:
        with press(model):
            body(input_ids=prompt(300), past_key_values=cache)
    positions = torch.arange(300, 306)[None]
    out = model(input_ids=question, past_key_values=cache, position_ids=positions)
    return out.logits[0, :3], [layer.get_seq_length() for layer in cache.layers]


moved = {}
for name, press in (("no press", None), ("KnormPress(0.5)", KnormPress(0.5))):
    (one, lengths), (two, _) = first_three(question, press), first_three(other, press)
    moved[name] = (one - two).abs().max().item()
    print(f"{name}: lengths {lengths}; three later tokens move the first three's logits by {moved[name]:.2g}")
sys.exit(0 if moved["no press"] < 1e-4 and moved["KnormPress(0.5)"] > 0.01 else 1)
PYTHON
