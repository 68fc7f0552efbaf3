#!/bin/sh
# kvpress 0.5.5: in its evaluation and leaderboard, press_name=expected_attention is AdaKV around ExpectedAttention.
#
# Heads get budgets of their own there; the class kvpress.ExpectedAttentionPress gives every head the same. config.yaml tells
# it in press_init_command only; the folder's name and the leaderboard's say expected_attention.
#
# Seen:
#   kvpress 0.5.5
#   snapkv: SnapKVPress()
#   expected_attention: AdaKVPress(ExpectedAttentionPress(epsilon=0.01))
#
# The registry is in kvpress's source archive only, which pip downloads. Needs no other package. Exits with 1 if the
# behaviour is another one.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
cd "$here"
python=${FINDINGS_PYTHON:-${PYTHON:-python3}}
"$python" -m pip download -q --no-deps --no-binary :all: kvpress==0.5.5 2> pip.log || true
[ -f kvpress-0.5.5.tar.gz ] || { cat pip.log >&2; exit 1; }
tar xzf kvpress-0.5.5.tar.gz
"$python" - <<'PYTHON'
import ast
import sys
from pathlib import Path

tree = ast.parse(Path("kvpress-0.5.5/evaluation/evaluate_registry.py").read_text())
(registry,) = [
    node.value for node in tree.body
    if isinstance(node, ast.Assign) and node.targets[0].id == "PRESS_REGISTRY"
]
made = {key.value: ast.unparse(value) for key, value in zip(registry.keys, registry.values)}
print("kvpress 0.5.5")
for name in ("snapkv", "expected_attention"):
    print(f"{name}: {made[name]}")
sys.exit(0 if made["expected_attention"].startswith("AdaKVPress(ExpectedAttention") else 1)
PYTHON
