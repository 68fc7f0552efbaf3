#!/bin/sh
# kvpress 0.5.5 on transformers 5.24.0: every press raises `KeyError: 'past_key_values'`. Attention gets the
# cache as `cache` there, and kvpress's hook asks for the older name.
#
# kvpress's metadata asks for transformers < 5.3, so this takes `pip install --no-deps`.
#
# Seen:
#   kvpress 0.5.5 transformers 5.24.0
#   no press: runs
#   KnormPress: KeyError: 'past_key_values'
#   SnapKVPress: KeyError: 'past_key_values'
#   StreamingLLMPress: KeyError: 'past_key_values'
#   ExpectedAttentionPress: KeyError: 'past_key_values'
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
    "$python" -m pip install -q torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0 fire==0.7.1 \
        cachetools==8.0.2 pandas==3.1.1 peft==0.21.2 requests==2.34.2
    "$python" -m pip install -q --no-deps kvpress==0.5.5
fi
"$python" - <<'PYTHON'
import importlib.metadata
import logging
import sys

import torch
import transformers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from kvpress import ExpectedAttentionPress, KnormPress, SnapKVPress, StreamingLLMPress

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


model = LlamaForCausalLM(LlamaConfig(**SIZES)).eval()
model.model(prompt(300), past_key_values=DynamicCache())
print("no press: runs")
raised = []
for press in (KnormPress(0.5), SnapKVPress(0.5), StreamingLLMPress(0.5), ExpectedAttentionPress(0.5)):
    try:
        with press(model):
            model.model(prompt(300), past_key_values=DynamicCache())
        raised.append(None)
    except KeyError as error:
        raised.append(str(error))
    print(f"{type(press).__name__}: {'runs' if raised[-1] is None else 'KeyError: ' + raised[-1]}")
sys.exit(0 if raised == ["'past_key_values'"] * 4 else 1)
PYTHON
