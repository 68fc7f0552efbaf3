#!/bin/sh
# transformers 5.2.0: dynamic NTK rotary embeddings keep the frequencies of the longest prompt that they have
# seen. A short prompt gets other logits after a long one than from a new model.
#
# `max_seq_len_cached` is never written (the new length goes to an attribute `None_max_seq_len_cached`), so the
# reset to the original frequencies never runs. In 5.24.0 a prompt below max_position_embeddings resets them;
# in a batch, all rows still get the frequencies of the longest.
#
# Seen:
#   transformers 5.2.0
#   60 tokens twice: logits differ by 0
#   60 tokens after 400 others: 8; attributes ['None_max_seq_len_cached', 'max_seq_len_cached']
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
from transformers import LlamaConfig, LlamaForCausalLM

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


rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
config = LlamaConfig(**{**SIZES, "max_position_embeddings": 128}, rope_parameters=rope)
model = LlamaForCausalLM(config).eval()
new = model(prompt(60)).logits
again = model(prompt(60)).logits
model(prompt(400, 1))
after = model(prompt(60)).logits
left = sorted(name for name in vars(model.model.rotary_emb) if "cached" in name)
print(f"60 tokens twice: logits differ by {(new - again).abs().max():.2g}")
print(f"60 tokens after 400 others: {(new - after).abs().max():.2g}; attributes {left}")
ok = torch.equal(new, again) and (new - after).abs().max() > 0.1
sys.exit(0 if ok and "None_max_seq_len_cached" in left else 1)
PYTHON
