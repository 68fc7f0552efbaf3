#!/bin/sh
# inspect_ai 0.3.285: an .eval log is a zip that Python's zipfile and unzip cannot read.
#
# Its members are compressed with Zstandard, method 93, which zipfile knows from Python 3.14 on. The archive opens,
# and lists its names; reading one raises. In a process that imported inspect_ai it works: inspect patches zipfile.
#
# Seen on Python 3.11.7:
#   inspect_ai 0.3.285
#   samples/…: method 93
#   zipfile: NotImplementedError: That compression method is not supported
#   zipfile after import inspect_ai.log: read
#
# Needs a Python of 3.10 to 3.13; makes an environment of its own, or takes FINDINGS_PYTHON, a python that
# has this package. Exits with 1 if the behaviour is another one.
set -eu
here=$(mktemp -d)
trap 'rm -rf "$here"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    "${PYTHON:-python3}" -m venv "$here/venv"
    python="$here/venv/bin/python"
    "$python" -m pip install -q inspect_ai==0.3.285
fi
cd "$here"
"$python" - <<'PYTHON'
import importlib.metadata

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelAPI, ModelOutput, modelapi
from inspect_ai.scorer import match
from inspect_ai.solver import generate

print("inspect_ai", importlib.metadata.version("inspect_ai"))


@modelapi("one")
class One(ModelAPI):
    async def count_tokens(self, *_, **__):  # without a download of a tokenizer
        return 1

    async def generate(self, input, tools, tool_choice, config):
        return ModelOutput.from_content(self.model_name, "1")


task = Task(dataset=[Sample(input="1?", target="1")], solver=generate(), scorer=match())
eval(task, model="one/m", log_dir="logs", log_format="eval", display="none")
PYTHON
"$python" - <<'PYTHON'
import sys
import zipfile
from pathlib import Path

(log,) = Path("logs").glob("*.eval")


def read(member):
    try:
        with zipfile.ZipFile(log) as archive:
            archive.read(member)
    except NotImplementedError as error:
        return f"NotImplementedError: {error}"
    return "read"


with zipfile.ZipFile(log) as archive:
    (member,) = [i for i in archive.infolist() if i.filename.startswith("samples/")]
print(f"samples/…: method {member.compress_type}")
alone = read(member.filename)
print("zipfile:", alone)
import inspect_ai.log  # noqa: E402, F401

patched = read(member.filename)
print("zipfile after import inspect_ai.log:", patched)
said = alone if patched == "read" else ""
sys.exit(0 if member.compress_type == 93 and said.startswith("NotImplementedError") else 1)
PYTHON
