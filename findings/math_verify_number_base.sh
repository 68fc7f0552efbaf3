#!/bin/sh
# math-verify 0.9.0: a number in another base equals the same digits, and an interval equals an inequality one way only.
#
# MATH-500 has answers such as 4210_{5}. math-verify drops the index, so 4210 is right, and 4210_{8} too. verify() takes
# the reference first, and the order decides: the interval (-oo, 3) is right where x<3 is wanted, not the other way. An
# answer in several boxes is their set: "First \boxed{5}, then \boxed{6}." is not 6.
#
# Seen:
#   math-verify 0.9.0
#   4210_{5}: 4210 True, 4210_{8} True, 4211 False
#   x<3 wanted: (-oo,3) True; (-oo,3) wanted: x<3 False
#   6 wanted: \boxed{6} True, First \boxed{5}, then \boxed{6}. False
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
    "$python" -m pip install -q "math-verify[antlr4_13_2]==0.9.0"
fi
"$python" - <<'PYTHON'
import importlib.metadata
import sys

from math_verify import parse, verify

print("math-verify", importlib.metadata.version("math-verify"))


def right(reference, answer):
    return verify(parse(f"${reference}$"), parse(answer))


base = [right("4210_{5}", rf"\boxed{{{text}}}") for text in ("4210", "4210_{8}", "4211")]
print("4210_{{5}}: 4210 {}, 4210_{{8}} {}, 4211 {}".format(*base))
order = right("x<3", r"$(-\infty,3)$"), right(r"(-\infty,3)", "$x<3$")
print("x<3 wanted: (-oo,3) {}; (-oo,3) wanted: x<3 {}".format(*order))
boxes = right("6", r"\boxed{6}"), right("6", r"First \boxed{5}, then \boxed{6}.")
print("6 wanted: \\boxed{{6}} {}, First \\boxed{{5}}, then \\boxed{{6}}. {}".format(*boxes))
sys.exit(0 if [*base, *order, *boxes] == [True, True, False, True, False, True, False] else 1)
PYTHON
