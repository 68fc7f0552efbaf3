#!/bin/sh
# lm-eval 0.4.13: on LongBench's few-shot tasks an answer that begins with a line break is empty, and scores 0.
#
# LongBench takes the first line of an answer to trec, triviaqa, samsum and lsht, and drops line breaks before it
# (eval.py: prediction.lstrip('\n').split('\n')[0]). lm-eval has "\n" as a stop string of these tasks: the text ends
# before the first one, wherever it stands.
#
# Seen:
#   lm_eval 0.4.13
#   trec: until ['\n']; '\nDate\nQuestion: ...' -> '' scores 0.0; LongBench's first line 'Date' scores 1.0
#   triviaqa: until ['\n']; '\nParis\nQuestion: ...' -> '' scores 0.0; LongBench's first line 'Paris' scores 1.0
#   samsum: until ['\n']; '\nAnn is late.\nDialogue: ...' -> '' scores 0.0; LongBench's first line 'Ann is late.' scores 1.0
#
# Makes an environment of its own, or takes FINDINGS_PYTHON, a python that has lm_eval[longbench]. Exits with 1 if the
# behaviour is another one.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    "${PYTHON:-python3}" -m venv "$here/venv"
    python="$here/venv/bin/python"
    "$python" -m pip install -q lm_eval==0.4.13 jieba==0.42.1 fuzzywuzzy==0.18.0 rouge==1.0.1
fi
cd "$here"
"$python" - <<'PYTHON'
import importlib.metadata
import importlib.util
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
import lm_eval
import yaml
from lm_eval.models.utils import postprocess_generated_text

folder = Path(lm_eval.__file__).parent / "tasks" / "longbench"
spec = importlib.util.spec_from_file_location("longbench_metrics", folder / "metrics.py")
metrics = importlib.util.module_from_spec(spec)
spec.loader.exec_module(metrics)


class Loader(yaml.SafeLoader):
    """Reads a task with the names of its functions."""


Loader.add_constructor("!function", lambda loader, node: node.value.rpartition(".")[2])
print("lm_eval", importlib.metadata.version("lm_eval"))
ANSWERS = {
    "trec": ("Date", "\nDate\nQuestion: ..."),
    "triviaqa": ("Paris", "\nParis\nQuestion: ..."),
    "samsum": ("Ann is late.", "\nAnn is late.\nDialogue: ..."),
}
seen = []
for name, (reference, text) in ANSWERS.items():
    task = yaml.load((folder / f"{name}.yaml").read_text(), Loader)
    doc = {"answers": [reference], "all_classes": ["Date", "City"]}
    score = getattr(metrics, task["process_results"])
    until = task["generation_kwargs"]["until"]
    cut = postprocess_generated_text(text, until, None)
    first = text.lstrip("\n").split("\n")[0]
    theirs, longbench = (score(doc, [t])["score"] for t in (cut, first))
    print(
        f"{name}: until {until}; {text!r} -> {cut!r} scores {theirs:.1f}; LongBench's first line {first!r} scores {longbench:.1f}"
    )
    seen.append(theirs == 0 and longbench > 0.99)
sys.exit(0 if all(seen) else 1)
PYTHON
