#!/usr/bin/env bash
# kvpress 0.5.5 cannot be imported on Python 3.13.
#
# One of its modules imports fire at the top; kvpress caps fire below 0.7; fire 0.6.0 imports
# `pipes`, which Python 3.13 removed. fire 0.7.1 does not import it. kvpress 0.5.5 itself says
# that it supports Python 3.10 and later.
#
#   findings/kvpress_fire_python313.sh          # seconds: fire, and what kvpress asks of it
#   findings/kvpress_fire_python313.sh --full   # minutes and 6 GB: torch and `import kvpress` too
#
# Seen on 3.13.0:
#   kvpress 0.5.5: requires fire<0.7,>=0.6.0; Python >=3.10; expected_attention_with_stats imports fire
#   fire 0.6.0: ModuleNotFoundError: No module named 'pipes'
#   fire 0.7.1: imported
#   kvpress 0.5.5: ModuleNotFoundError: No module named 'pipes'      (--full)
set -euo pipefail

python=$(for name in python3.13 "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.13.*/bin/python; do
  "$name" -c 'import sys; assert sys.version_info[:2] == (3, 13); print(sys.executable)' 2>/dev/null && break
done) || { echo "no Python 3.13 found" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
pip() { "$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" 2> "$folder/pip.log" || { cat "$folder/pip.log" >&2; exit 1; }; }
imported() { "$folder/venv/bin/python" -c "import $1; print('imported')" 2>&1 | tail -1 || true; }
same() { echo "$1: $2"; [ "$2" = "$3" ] || { echo "expected: $3" >&2; exit 1; }; }

"$folder/venv/bin/python" -VV
pip fire==0.6.0
pip --no-deps kvpress==0.5.5
same "kvpress 0.5.5" "$("$folder/venv/bin/python" - << 'PYTHON'
import ast
from importlib.metadata import metadata
from pathlib import Path
from sysconfig import get_path

about = metadata("kvpress")
(needs,) = [r for r in about.get_all("Requires-Dist") if r.startswith("fire")]
presses = Path(get_path("purelib")) / "kvpress" / "presses"
top = [
    path.stem
    for path in sorted(presses.glob("*.py"))
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.Import) and any(name.name == "fire" for name in node.names)
]
print(f"requires {needs}; Python {about['Requires-Python']}; {', '.join(top)} imports fire")
PYTHON
)" "requires fire<0.7,>=0.6.0; Python >=3.10; expected_attention_with_stats imports fire"
same "fire 0.6.0" "$(imported fire)" "ModuleNotFoundError: No module named 'pipes'"
if [ "${1:-}" = --full ]; then
  pip torch==2.13.0
  pip kvpress==0.5.5 'transformers<5.3'
  same "kvpress 0.5.5" "$(imported kvpress)" "ModuleNotFoundError: No module named 'pipes'"
fi
pip --no-deps fire==0.7.1
same "fire 0.7.1" "$(imported fire)" imported
echo "unchanged"
