#!/usr/bin/env bash
# The light suite on the newest stack (constraints-newest.txt), in an environment of its own that takes
# everything else, torch among it, from the one that `make install` made. Two or three minutes.
#
#   scripts/stack_suite.sh                    # what CI runs
#   scripts/stack_suite.sh tests/test_run.py  # other tests
set -euo pipefail
cd "$(dirname "$0")/.."

light="tests/test_stack.py tests/test_engine.py tests/test_presses.py tests/test_guarded.py"
if [ -e tests/test_families.py ]; then light="$light tests/test_families.py"; fi
# shellcheck disable=SC2206  # a list of files
[ $# -gt 0 ] || set -- $light

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
pinned=.venv/bin/python
"$pinned" -m venv --without-pip "$folder"
packages='import sysconfig; print(sysconfig.get_paths()["purelib"])'
"$pinned" -c "$packages" > "$("$folder/bin/python" -c "$packages")/pinned.pth"
# not compiled: most of transformers is never imported
"$pinned" -m pip --python "$folder/bin/python" install --quiet --no-deps --no-compile \
  --ignore-installed -r constraints-newest.txt
"$folder/bin/python" -c 'import transformers; print("transformers", transformers.__version__)'
OMP_NUM_THREADS=1 PYTHONPATH=$PWD "$folder/bin/python" -m pytest -p no:cacheprovider "$@"
