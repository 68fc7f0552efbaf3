#!/bin/sh
# MRCR's metric, difflib's ratio: repeating an unrelated text scores 0.21 below 200 characters, and 0.04 above.
#
# OpenAI's MRCR scores an answer that begins with its hash by SequenceMatcher(None, answer, reference).ratio(). From 200
# characters of reference on, difflib ignores characters that make up more than 1% of it, which in English is nearly all.
# Below, it matches letters one by one. So the floor of benchmarks in MRCR's form depends on how long their needles are:
# with short ones a wrong needle earns a fifth of the score. An answer that is right but for one word keeps 0.94 or more.
#
# Seen on Python 3.11.7 (texts are Python's own documentation):
#   unrelated, 199 characters: 0.21; 201 characters: 0.04; without the heuristic: 0.21
#   one word changed, 199 characters: 0.97; 201 characters: 0.94
#
# Needs nothing but Python: FINDINGS_PYTHON, else python3. Exits with 1 if the behaviour is another one.
set -eu
"${FINDINGS_PYTHON:-python3}" - <<'PYTHON'
import random
import sys
from difflib import SequenceMatcher
from pydoc_data.topics import topics

texts = [" ".join(text.split()) for text in topics.values() if len(text) > 3000]
rng = random.Random(0)


def excerpt(n):
    text = rng.choice(texts)
    start = rng.randrange(len(text) - n)
    return text[start : start + n]


def mean(values):
    return sum(values) / len(values)


def unrelated(n, **how):
    pairs = [(excerpt(n), excerpt(n)) for _ in range(200)]
    return mean([SequenceMatcher(None, a, b, **how).ratio() for a, b in pairs])


def changed(n):
    found = []
    for _ in range(200):
        text = excerpt(n)
        words = text.split(" ")
        words[len(words) // 2] = "purple"
        found.append(SequenceMatcher(None, " ".join(words), text).ratio())
    return mean(found)


short, long, plain = unrelated(199), unrelated(201), unrelated(201, autojunk=False)
print(f"unrelated, 199 characters: {short:.2f}; 201 characters: {long:.2f}; without the heuristic: {plain:.2f}")
near = changed(199), changed(201)
print(f"one word changed, 199 characters: {near[0]:.2f}; 201 characters: {near[1]:.2f}")
sys.exit(0 if short > 4 * long and plain > 4 * long and min(near) > 0.9 else 1)
PYTHON
