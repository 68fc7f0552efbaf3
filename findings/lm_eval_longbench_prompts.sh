#!/bin/sh
# lm-eval 0.4.13: its LongBench prompts hold LongBench's instructions twice, and the few-shot ones end before the answer's cue.
#
# The tasks read Xnhyacinth/LongBench. kvpress's evaluation makes that dataset (create_huggingface_dataset.py, in its
# source archive): it puts LongBench's prompt around each context, and moves what stands last ("Answer:", "Type:",
# "Next line of code:") into a column answer_prefix. lm-eval puts the prompt around the context once more, and does not
# read answer_prefix. Its scores are then not those of LongBench's prompts. The rows here are made by kvpress's own
# templates; those on the hub were not fetched.
#
# Seen:
#   lm_eval 0.4.13, kvpress 0.5.5; lm-eval reads Xnhyacinth/LongBench, which kvpress's script writes: True
#   hotpotqa: instruction 4 times (LongBench: 2), ends with ': Who?\n\nAnswer:'
#   trec: instruction 2 times (LongBench: 1), ends with 'Question: Who?\n' (LongBench: '...\nType:')
#   triviaqa: instruction 2 times (LongBench: 1), ends with 'Question: Who?\n' (LongBench: '...\nAnswer:')
#   samsum: instruction 2 times (LongBench: 1), ends with 'Question: Who?\n' (LongBench: '...\nSummary:')
#   lcc: instruction 2 times (LongBench: 1), ends with 't line of code:'
#
# Makes an environment of its own, or takes FINDINGS_PYTHON, a python that has lm_eval. kvpress's script is in its source
# archive only, which pip downloads. Exits with 1 if the behaviour is another one.
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
"${PYTHON:-python3}" -m pip download -q --no-deps --no-binary :all: kvpress==0.5.5 2> pip.log || true
[ -f kvpress-0.5.5.tar.gz ] || { cat pip.log >&2; exit 1; }
tar xzf kvpress-0.5.5.tar.gz
"$python" - <<'PYTHON'
import ast
import importlib.metadata
import sys
from pathlib import Path

import lm_eval
import yaml
from lm_eval.utils import apply_template

FOLDER = Path(lm_eval.__file__).parent / "tasks" / "longbench"
source = Path("kvpress-0.5.5/evaluation/benchmarks/longbench/create_huggingface_dataset.py").read_text()
made = {}
for node in ast.parse(source).body:
    if isinstance(node, ast.Assign) and node.targets[0].id in ("context_prefix", "question_template", "answer_prefix"):
        made[node.targets[0].id] = ast.literal_eval(node.value)
CUES = {"trec": "Type:", "triviaqa": "Answer:", "samsum": "Summary:"}  # how the rows' input ends


class Loader(yaml.SafeLoader):
    """Reads a task without its functions."""


Loader.add_constructor("!function", lambda loader, node: None)
tasks = {t: yaml.load((FOLDER / f"{t}.yaml").read_text(), Loader) for t in ("hotpotqa", *CUES, "lcc")}
same = all(t["dataset_path"] == "Xnhyacinth/LongBench" for t in tasks.values())
same = same and 'push_to_hub("Xnhyacinth/LongBench"' in source
print(
    f"lm_eval {importlib.metadata.version('lm_eval')}, kvpress 0.5.5; lm-eval reads Xnhyacinth/LongBench, which kvpress's "
    f"script writes: {same}"
)
twice = []
for name, task in tasks.items():
    cue = CUES.get(name)
    asked = {"hotpotqa": "Who?", "lcc": ""}.get(name, f"Question: Who?\n{cue}")
    once = made["context_prefix"][name].format(context="Some text.")
    row = {
        "context": once,
        "question": made["question_template"][name].format(input=asked.removesuffix(cue or "")),
        "answer_prefix": made["answer_prefix"][name],
    }
    prompt = apply_template(task["doc_to_text"], row)
    words = made["context_prefix"][name].split(".")[0]
    n, longbench = prompt.count(words), once.count(words)
    beside = f" (LongBench: '...\\n{cue}')" if cue else ""
    print(f"{name}: instruction {n} times (LongBench: {longbench}), ends with {prompt[-15:]!r}{beside}")
    twice.append(n == 2 * longbench and (cue is None or not prompt.endswith(cue)))
sys.exit(0 if same and all(twice) else 1)
PYTHON
