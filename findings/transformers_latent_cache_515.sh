#!/bin/sh
# transformers 5.15.0 changed what the cache of multi-head latent attention (MLA) holds: until 5.14.1 keys and
# values of every head, since then the latent vector and the rotary key that all heads share. The same
# DeepSeek-V3 config takes another number of bytes for each token (with DeepSeek-V3's own sizes 40,960 numbers a
# layer before, 576 since), and what `cache.layers[i].keys` and `.values` mean is another thing. No field of
# the config and no class of the cache tells which. A budget in bytes, or a method that reads keys and values from
# the cache, cannot be carried from one version to the other.
#
# Seen:
#   transformers 5.14.1: keys (1, 4, 10, 24), values (1, 4, 10, 16), 6400 bytes of a layer
#   transformers 5.15.0: keys (1, 1, 10, 32), values (1, 1, 10, 8), 1600 bytes of a layer
#
# Makes an environment of its own. Exits with 1 if the behaviour is another one.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
"${PYTHON:-python3}" -m venv "$here/venv"
python="$here/venv/bin/python"
"$python" -m pip install -q torch==2.13.0 transformers==5.14.1
"$python" -m pip install -q --no-deps --target "$here/later" transformers==5.15.0
cat > "$here/held.py" <<'PYTHON'
import torch
import transformers
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache

torch.manual_seed(0)
model = DeepseekV3ForCausalLM(DeepseekV3Config(
    vocab_size=300, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=4, kv_lora_rank=32, q_lora_rank=24, qk_nope_head_dim=16,
    qk_rope_head_dim=8, v_head_dim=16, n_routed_experts=8, n_group=2, topk_group=1, num_experts_per_tok=2,
    first_k_dense_replace=1, pad_token_id=0,
)).eval()
cache = DynamicCache()
with torch.no_grad():
    model(input_ids=torch.arange(10)[None], past_key_values=cache)
keys, values = cache.layers[0].keys, cache.layers[0].values
held = sum(t.numel() * t.element_size() for t in (keys, values))
print(f"transformers {transformers.__version__}: keys {tuple(keys.shape)}, values {tuple(values.shape)},"
      f" {held} bytes of a layer")
PYTHON
{
    "$python" "$here/held.py"
    PYTHONPATH="$here/later" "$python" "$here/held.py"
} 2> "$here/log" > "$here/seen" || { cat "$here/log"; exit 1; }
cat "$here/seen"
sed -n 's/^#   \(transformers .*\)/\1/p' "$0" | diff - "$here/seen"
