#!/bin/sh
# kvpress 0.5.5: CURPress keeps the last r = prompt length % 16 entries whatever their keys and values, for r
# up to about 8.
#
# Norms are divided by their sum over windows of 16 entries. The last window is padded with zeros, so r
# entries share what 16 share elsewhere, and keys times values makes that (16 / r) squared.
#
# Seen:
#   kvpress 0.5.5 transformers 5.2.0
#   prompt 1024, ratio 0.75: of the last 16 entries 26% are kept
#   prompt 1025, ratio 0.75: of the last 1 entries 100% are kept
#   prompt 1028, ratio 0.75: of the last 4 entries 100% are kept
#   prompt 1032, ratio 0.75: of the last 8 entries 100% are kept
#   prompt 1040, ratio 0.75: of the last 16 entries 26% are kept
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
from kvpress import CURPress

print("kvpress", importlib.metadata.version("kvpress"), "transformers", transformers.__version__)
states = torch.randn(2, 1, 8, 1040, 64, generator=torch.Generator().manual_seed(0))
shares = {}
for n in (1024, 1025, 1028, 1032, 1040):
    scores = CURPress(0.75).score(None, None, *states[:, :, :, :n], None, {})
    kept, last = scores.topk(n // 4, dim=-1).indices, n % 16 or 16
    shares[n] = (kept >= n - last).sum().item() / (8 * last)
    print(f"prompt {n}, ratio 0.75: of the last {last} entries {shares[n]:.0%} are kept")
always = all(shares[n] == 1 for n in (1025, 1028, 1032))
sys.exit(0 if always and max(shares[1024], shares[1040]) < 0.5 else 1)
PYTHON
