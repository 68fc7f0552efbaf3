#!/usr/bin/env bash
# The light suite on other Pythons than the one CI uses: syntax, standard library, Hydra, statistics,
# tables, and that kvpress's fire can be imported. A few files, a minute for each Python.
#
#   scripts/light_suite.sh 3.12 3.13            # in CI: without torch, whose wheel of 3 GB takes minutes
#   scripts/light_suite.sh --torch 3.13         # with torch: kvpress and the tiny model too
set -euo pipefail
cd "$(dirname "$0")/.."

with_torch=
if [ "${1:-}" = --torch ]; then with_torch=1; shift; fi
heavy='torch|transformers|kvpress|xgboost|datasets|gguf'
light="tests/test_limits.py tests/test_kvpress_import.py tests/test_stats_bootstrap.py
  tests/test_stats_intervals.py tests/test_stats_paired.py tests/test_stats_transition.py
  tests/test_certify_stats.py tests/test_detectors.py tests/test_metrics.py tests/test_failures.py"
real="tests/test_config.py tests/test_arguments.py tests/test_engine.py tests/test_run.py"

# a Python of this version that runs: on the path, or one of pyenv's (whose shims may not)
find_python() {
  local name
  for name in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1."*/bin/python; do
    "$name" -c "import sys; assert '%d.%d' % sys.version_info[:2] == '$1'; print(sys.executable)" \
      2> /dev/null && return
  done
  return 1
}

requirements() { # of kvx and its tests; without torch, those that do not need it
  "$1" - "$heavy" "$with_torch" << 'PYTHON'
import re, sys, tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
heavy, with_torch = sys.argv[1:]
tools = [r for r in project["optional-dependencies"]["dev"] if re.match("pytest|hypothesis", r)]
extras = project["optional-dependencies"]
ours = [r for name, listed in extras.items() if name not in ("dev", "all") for r in listed]
needed = [r for r in project["dependencies"] + ours if with_torch or not re.match(heavy, r)]
extra = [] if with_torch else ["fire==0.6.0"]  # what kvpress needs of it
print("\n".join([*needed, *tools, *extra]))
PYTHON
}

for version in "$@"; do
  if ! python=$(find_python "$version"); then
    echo "Python $version: not on this machine, not tested"
    continue
  fi
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  "$python" -m venv "$folder/venv"
  requirements "$python" > "$folder/requirements.txt"
  # not compiled: most of what is installed is never imported in the one process that follows
  "$folder/venv/bin/python" -m pip install --quiet --no-compile -c constraints.txt \
    -r "$folder/requirements.txt"
  files=$light
  if [ -n "$with_torch" ]; then files="$light $real"; fi
  echo "Python $version${with_torch:+ with torch}: the light suite"
  # shellcheck disable=SC2086  # a list of files
  OMP_NUM_THREADS=1 PYTHONPATH=$PWD "$folder/venv/bin/python" -m pytest -p no:cacheprovider -m "not smollm2" $files
  rm -rf "$folder"
  if [ -z "$with_torch" ]; then
    echo "Python $version: not tested: whatever imports torch (scripts/light_suite.sh --torch $version)"
  fi
done
