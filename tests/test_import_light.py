"""Generating and serving without a forecast import nothing that only training or tables need."""

import json
import subprocess
import sys
from pathlib import Path

# `import` statements that kvx's own modules execute; kvpress itself imports pandas
WATCHED = """
import builtins, json, linecache, os, sys

HEAVY = {"xgboost", "pandas", "sklearn"}
plain, asked = builtins.__import__, set()


def watched(name, globals=None, locals=None, fromlist=(), level=0):
    importer = (globals or {}).get("__name__", "")
    if name.partition(".")[0] in HEAVY and importer.partition(".")[0] == "kvx":
        frame = sys._getframe(1)  # pyarrow's compiled code imports in the name of who calls it
        if "import" in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
            asked.add((importer, name))
    return plain(name, globals, locals, fromlist, level)


builtins.__import__ = watched
"""
TOLD = """
loaded = {"xgboost", "sklearn", "kvx.guard.hazard"} & {*sys.modules}
print(json.dumps({"asked": sorted(asked), "loaded": sorted(loaded)}))
"""
RUN = """
from kvx.cli.command import run_stage

assert run_stage("run", [
    "press=knorm", "budget=0.2", *sys.argv[1:], "dataset.source.n_examples=20",
    "dataset.sampling.n_per_bin=1",
]) == 0
"""
SERVE = """
from tests.serving import post, serving

with serving("model=tiny_recall", "press=knorm", "budget=0.2", *sys.argv[1:]) as server:
    body = {"model": "tiny_recall", "prompt": "a b c d e f g h " * 8, "max_tokens": 8}
    answer = post(server.url, body)
    assert answer.status_code == 200, answer.text
"""
GUARDED = """
from kvpress import KnormPress
import kvx
from tests.guarding import a_prompt, options, tiny_model

guard = kvx.guarded(tiny_model(), KnormPress(0.8), *sys.argv[1:])
guard.generate(**options(a_prompt(40)))
"""


def imports_of(work: str, folder: Path, *arguments: str) -> dict[str, list[object]]:
    """What the `work` of a new process imported, with `arguments`."""
    root = Path(__file__).parents[1]
    code = f"{WATCHED}sys.path.insert(0, {str(root)!r})\n{work}{TOLD}"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True,
        timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, list[object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_run_without_a_forecast_imports_little(tmp_path: Path) -> None:
    found = imports_of(RUN, tmp_path, "-m", "controller=none,ngram,gate")
    assert found == {"asked": [], "loaded": []}


def test_a_server_without_a_forecast_imports_little(tmp_path: Path) -> None:
    assert imports_of(SERVE, tmp_path, "controller=ngram") == {"asked": [], "loaded": []}


def test_the_library_without_a_forecast_imports_little(tmp_path: Path) -> None:
    assert imports_of(GUARDED, tmp_path, "ngram") == {"asked": [], "loaded": []}


def test_what_is_imported_is_seen(tmp_path: Path) -> None:
    """The watch itself: a forecast does need the trees."""
    found = imports_of(GUARDED, tmp_path, "balanced")
    assert found["loaded"] == ["kvx.guard.hazard", "xgboost"]
    assert ["kvx.guard.hazard", "xgboost"] in found["asked"]
