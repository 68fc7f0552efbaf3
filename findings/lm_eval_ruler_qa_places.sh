#!/bin/sh
# RULER, as lm-eval 0.4.13 has it: in the QA tasks, the document with the answer stands at the same place in all prompts.
#
# The documents of each prompt are shuffled with random.Random(42), anew for every prompt, and the question's own stand
# first in the list before that. So among 20 documents the one that answers is the 19th in all 500 prompts of a length, and
# the ten of HotpotQA lie at the same ten places. NVIDIA/RULER's scripts do the same (qa.py, and for the needles' order
# niah.py, for the words common_words_extraction.py and freq_words_extraction.py). What a method that goes by position
# (StreamingLLM, a window) keeps of the evidence is then the same in all prompts: the score says where 19 of 20 lies, and
# 500 prompts are one draw. kvx shuffles each example with a generator of its own.
#
# Seen:
#   lm_eval 0.4.13
#   qa_1: {(19, 20): 500}
#   qa_2, the first two of ten: {(19, 13, 20): 500}
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
import random
import re
import sys
from collections import Counter
from types import SimpleNamespace

from lm_eval.tasks.ruler import qa_utils


def tokenizer(text):  # a word is a token
    return SimpleNamespace(input_ids=text.split())


# articles of 25 paragraphs of 180 words, a question on each; and questions with ten paragraphs of their own
rng = random.Random(0)
docs = [f"[doc {i}] " + "word " * 180 for i in range(1200)]
on_one = [
    {"query": "q", "outputs": ["a"], "context": [i],
     "more_context": [j for j in range(i - i % 25, i - i % 25 + 25) if j != i]}
    for i in rng.sample(range(1200), 500)
]
on_ten = [{"query": "q", "outputs": ["a"], "context": rng.sample(range(1200), 10)} for _ in range(500)]


def places(questions, n):
    """Where the first n documents of each question stand, and among how many."""
    found = Counter()
    for row in qa_utils.generate_samples(tokenizer, docs, questions, 4096, num_samples=500):
        listed = [int(i) for i in re.findall(r"Document \d+:\n\[doc (\d+)\]", row["input"])]
        own = questions[row["index"]]["context"][:n]
        found[(*(listed.index(i) + 1 for i in own), len(listed))] += 1
    return dict(found)


one, ten = places(on_one, 1), places(on_ten, 2)
print("lm_eval", importlib.metadata.version("lm_eval"))
print("qa_1:", one)
print("qa_2, the first two of ten:", ten)
sys.exit(0 if len(one) == len(ten) == 1 else 1)
PYTHON
