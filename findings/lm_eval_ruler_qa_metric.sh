#!/bin/sh
# RULER in lm-eval 0.4.13: a right answer to a QA question gets the share of its references that it contains, not 1.
#
# RULER's string_match_part takes the best reference of a question. lm-eval hands it one answer at a time, and its version
# takes the maximum over answers instead, of which there is one, and the mean over references. SQuAD's questions
# (ruler_qa_squad) have several, often different ones: an answer that is one of them scores a third.
#
# Seen:
#   lm_eval 0.4.13
#   answer '10th century', references ['10th century', 'the first half of the 10th century', '10th']: 0.667
#   answer 'France', references ['France', 'in France', 'Normandy, France']: 0.333
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
    "$python" -m pip install -q lm_eval==0.4.13 transformers
fi
cd "$here"
"$python" - <<'PYTHON'
import importlib.metadata
import sys

from lm_eval.tasks.ruler.common_utils import process_results_part

print("lm_eval", importlib.metadata.version("lm_eval"))
cases = {
    "10th century": ["10th century", "the first half of the 10th century", "10th"],
    "France": ["France", "in France", "Normandy, France"],
}
scores = []
for answer, references in cases.items():
    scores.append(process_results_part({"max_length": 4096, "outputs": references}, [answer])["4096"])
    print(f"answer {answer!r}, references {references}: {scores[-1]:.3f}")
sys.exit(0 if all(score < 1 for score in scores) else 1)
PYTHON
