#!/bin/sh
# lm-eval 0.4.13: in samples_*.jsonl a document has a row for every filter of its task.
#
# A task with two filters (gsm8k has two) writes twice as many rows as documents, and doc_id is not unique. A mean over the
# rows is in no table of lm-eval: it mixes the filters, and a join by doc_id pairs strict with flexible scores.
#
# Seen:
#   lm_eval 0.4.13
#   documents 4, rows 8, distinct doc_id 4
#   exact_match by filter: {'strict': 0.25, 'number': 1.0}; over the rows: 0.625
#
# Makes an environment of its own, or takes FINDINGS_PYTHON, a python that has this package. Exits with 1 if the
# behaviour is another one.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    "${PYTHON:-python3}" -m venv "$here/venv"
    python="$here/venv/bin/python"
    "$python" -m pip install -q lm_eval==0.4.13
fi
cd "$here"
for n in 0 1 2 3; do echo "{\"a\": $n}"; done > data.jsonl
cat > echo.yaml <<'YAML'
task: echo
dataset_path: json
dataset_kwargs: {data_files: {test: data.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{a}}"
doc_to_target: "{{a}}"
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
filter_list:
  - {name: strict, filter: [{function: take_first}]}
  - {name: number, filter: [{function: regex, regex_pattern: "(\\d+)"}, {function: take_first}]}
YAML
cat > run.py <<'PYTHON'
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model


@register_model("echoes")
class Echoes(LM):
    """The number alone for 0, else in a sentence."""

    def __init__(self, **_):
        super().__init__()

    def generate_until(self, requests, disable_tqdm=False):
        return [n if n == "0" else f"It is {n}." for n in (r.args[0] for r in requests)]

    def loglikelihood(self, *_, **__): ...
    def loglikelihood_rolling(self, *_, **__): ...


cli_evaluate()
PYTHON
HF_HOME="$here/hf" "$python" run.py run --model echoes --include_path . --tasks echo --log_samples --output_path out > run.log 2>&1 \
    || { cat run.log >&2; exit 1; }
"$python" - <<'PYTHON'
import importlib.metadata
import json
import sys
from pathlib import Path

print("lm_eval", importlib.metadata.version("lm_eval"))
(path,) = Path("out").rglob("samples_echo_*.jsonl")
rows = [json.loads(line) for line in path.read_text().splitlines()]
ids = {row["doc_id"] for row in rows}
print(f"documents 4, rows {len(rows)}, distinct doc_id {len(ids)}")
scores = {}
for row in rows:
    scores.setdefault(row["filter"], []).append(row["exact_match"])
means = {name: sum(values) / len(values) for name, values in scores.items()}
mixed = sum(row["exact_match"] for row in rows) / len(rows)
print(f"exact_match by filter: {means}; over the rows: {mixed:g}")
sys.exit(0 if len(rows) == 8 and mixed not in means.values() else 1)
PYTHON
