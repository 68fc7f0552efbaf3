#!/bin/sh
# rouge 1.0.1, the ROUGE-L of LongBench, kvpress's evaluation and lm-eval: an answer that repeats itself loses nothing.
#
# The package counts each distinct word once (`exclusive=True`, its default), in the answer, the reference and what they
# share. A summary that says its sentences 20 times over has the score of one that stops. So the summaries of LongBench
# (gov_report, qmsum, multi_news, samsum, and vcsum and dureader in Chinese) do not show a model that fell into a loop,
# which is a common way in which a compressed cache fails.
#
# An answer without a full stop is one sentence, and the package recurses over it word by word. Where that passes Python's
# limit of 1,000 calls it raises RecursionError, and LongBench and lm-eval make a score of 0 of any exception. A Chinese
# full stop ends no sentence.
#
# Seen:
#   rouge 1.0.1
#   a summary: 0.609, the same 20 times: 0.609
#   1,200 words without a full stop: RecursionError, with full stops: 0.002
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
    "$python" -m pip install -q rouge==1.0.1
fi
"$python" - <<'PYTHON'
import importlib.metadata
import sys

from rouge import Rouge

print("rouge", importlib.metadata.version("rouge"))
REFERENCE = "The council votes on the harbour. Two members are against it."
ANSWER = "The council votes on a new harbour. Nobody is against it. "


def rouge_l(text, reference=REFERENCE):
    return Rouge(metrics=["rouge-l"]).get_scores([text], [reference], avg=True)["rouge-l"]["f"]


once, often = rouge_l(ANSWER), rouge_l(ANSWER * 20)
print(f"a summary: {once:.3f}, the same 20 times: {often:.3f}")
words = [f"w{i}" for i in range(1200)]
try:
    long = f"{rouge_l(' '.join(words), 'w0 x'):.3f}"
except RecursionError as error:
    long = type(error).__name__
stopped = rouge_l(". ".join(words), "w0 x")
print(f"1,200 words without a full stop: {long}, with full stops: {stopped:.3f}")
sys.exit(0 if once == often and long == "RecursionError" and stopped > 0 else 1)
PYTHON
