#!/bin/sh
# kvpress 0.5.5: its evaluation's predictions.csv is not read back as what was written.
#
# Reference answers are NumPy arrays, and a CSV cell holds what NumPy prints of one: without commas. ast.literal_eval, the
# usual way to read a list from a cell, raises nothing: Python joins adjacent strings, and several references become one.
# The context is left out, so questions on several contexts cannot be told apart. The columns go through a set: their
# order changes from run to run. The answer "None" and an empty answer are read back as nan by pandas.read_csv.
#
# Seen:
#   kvpress 0.5.5
#   cell: ['98' '50' '135']
#   ast.literal_eval: ['9850135']
#   answers read by pandas: [nan, nan, 'right'] of ['None', '', 'right']
#   columns in 8 runs: 8 orders; context written: False
#
# Makes an environment of its own, or takes FINDINGS_PYTHON, a python with pandas. The evaluation is in kvpress's
# source archive only, which pip downloads. Exits with 1 if the behaviour is another one.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    "${PYTHON:-python3}" -m venv "$here/venv"
    python="$here/venv/bin/python"
    "$python" -m pip install -q pandas==2.3.3
fi
cd "$here"
"${PYTHON:-python3}" -m pip download -q --no-deps --no-binary :all: kvpress==0.5.5 2> pip.log || true
[ -f kvpress-0.5.5.tar.gz ] || { cat pip.log >&2; exit 1; }
tar xzf kvpress-0.5.5.tar.gz
cat > write.py <<'PYTHON'
import ast
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd

# the method alone: the module imports every press
source = Path("kvpress-0.5.5/evaluation/evaluate.py").read_text()
(method,) = [n for n in ast.walk(ast.parse(source)) if getattr(n, "name", "") == "_save_results"]
scope = {"Path": Path, "logger": logging.getLogger()}
exec(ast.unparse(method), scope)
df = pd.DataFrame(
    {
        "context": ["c"] * 3, "question": ["q"] * 3, "answer_prefix": [""] * 3, "task": ["t"] * 3,
        "max_new_tokens": [8] * 3, "answer": [np.array(["98", "50", "135"], dtype=object)] * 3,
        "predicted_answer": ["None", "", "right"], "compression_ratio": [0.5] * 3,
    }
)
path = Path(sys.argv[1])
path.unlink(missing_ok=True)
scope["_save_results"](SimpleNamespace(df=df), path)
print(path.read_text().splitlines()[0])
PYTHON
: > orders
for seed in 1 2 3 4 5 6 7 8; do PYTHONHASHSEED=$seed "$python" write.py out.csv >> orders; done
"$python" - <<'PYTHON'
import ast
import sys
from pathlib import Path

import pandas as pd

print("kvpress 0.5.5")
table = pd.read_csv("out.csv")
cell = table["answer"][0]
print("cell:", cell)
read = ast.literal_eval(cell)
print("ast.literal_eval:", read)
answers = table["predicted_answer"].tolist()
print("answers read by pandas:", answers, "of ['None', '', 'right']")
orders = set(Path("orders").read_text().splitlines())
print(f"columns in 8 runs: {len(orders)} orders; context written: {'context' in table}")
same = read == ["9850135"] and len(orders) > 1 and "context" not in table and answers[0] != "None"
sys.exit(0 if same else 1)
PYTHON
