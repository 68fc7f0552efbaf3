#!/bin/sh
# inspect_ai 0.3.285: with fail_on_error=False, samples that fail are left out of the accuracy.
#
# The log ends with status "success". The denominator is the samples that have a score, so a model that fails on what it
# cannot do looks better than one that answers wrongly.
#
# Seen:
#   inspect_ai 0.3.285
#   10 samples, 5 right, 5 wrong: accuracy 0.50
#   10 samples, 5 right, 5 failed: accuracy 1.00; status success, completed_samples 5, scored_samples 5
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
    "$python" -m pip install -q inspect_ai==0.3.285
fi
cd "$here"
"$python" - <<'PYTHON'
import importlib.metadata
import sys

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelAPI, ModelOutput, modelapi
from inspect_ai.scorer import match
from inspect_ai.solver import generate

print("inspect_ai", importlib.metadata.version("inspect_ai"))


@modelapi("half")
class Half(ModelAPI):
    """Right below 5; from 5 on it is wrong, or fails."""

    async def count_tokens(self, *_, **__):  # without a download of a tokenizer
        return 1

    async def generate(self, input, tools, tool_choice, config):
        number = int(input[-1].text)
        if number >= 5 and self.model_name == "failed":
            raise RuntimeError("no answer")
        return ModelOutput.from_content(self.model_name, str(number) if number < 5 else "x")


seen = {}
for how in ("wrong", "failed"):
    samples = [Sample(input=str(n), target=str(n)) for n in range(10)]
    task = Task(dataset=samples, solver=generate(), scorer=match())
    (log,) = eval(task, model=f"half/{how}", log_dir="logs", display="none", fail_on_error=False)
    (score,) = log.results.scores
    seen[how] = score.metrics["accuracy"].value
    more = (
        f"; status {log.status}, completed_samples {log.results.completed_samples}, "
        f"scored_samples {score.scored_samples}"
    )
    print(f"10 samples, 5 right, 5 {how}: accuracy {seen[how]:.2f}{more if how == 'failed' else ''}")
sys.exit(0 if seen == {"wrong": 0.5, "failed": 1.0} else 1)
PYTHON
