#!/bin/sh
# kvpress 0.5.5 on Ministral 3: the model scales its queries by a position that transformers 5.2 takes from the
# cache's length. kvpress's pipeline passes position_ids only, so after compression the question is scaled as
# if the prompt were as short as what was kept of it.
#
# Seen:
#   kvpress 0.5.5 transformers 5.2.0
#   no press: position_ids alone, against cache_position too: logits differ by 0
#   KnormPress(0.5): position_ids alone, against cache_position too: logits differ by 1.8
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
from transformers import DynamicCache, Ministral3Config, Ministral3ForCausalLM

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


rope = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 16.0, "original_max_position_embeddings": 128,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.5,
}
model = Ministral3ForCausalLM(
    Ministral3Config(**SIZES, head_dim=16, sliding_window=None, rope_parameters=rope)
).eval()
positions = torch.arange(260, 300)


def answer(press, **told):
    """Logits [vocab] after a question of 40 tokens behind a prompt of 260."""
    cache = DynamicCache()
    if press is None:
        model.model(prompt(300)[:, :260], past_key_values=cache)
    else:
        with press(model):
            model.model(prompt(300)[:, :260], past_key_values=cache)
    out = model(prompt(300)[:, 260:], past_key_values=cache, position_ids=positions[None], **told)
    return out.logits[0, -1]


differences = {}
for name, press in (("no press", None), ("KnormPress(0.5)", KnormPress(0.5))):
    plain, told = answer(press), answer(press, cache_position=positions)
    differences[name] = (plain - told).abs().max().item()
    print(f"{name}: position_ids alone, against cache_position too: logits differ by {differences[name]:.2g}")
sys.exit(0 if differences["no press"] < 1e-4 and differences["KnormPress(0.5)"] > 0.1 else 1)
PYTHON
