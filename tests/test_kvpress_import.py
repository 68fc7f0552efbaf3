"""kvpress's fire can be imported on every Python, and nothing is left behind for others."""

import subprocess
import sys

import pytest

pytest.importorskip("fire")

# as on Python 3.13 without standard-pipes, whichever Python this is
CODE = """
import importlib.util, sys
import importlib.abc

class Gone(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "pipes":
            raise ModuleNotFoundError("No module named 'pipes'", name="pipes")

if {gone}:
    found = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == "pipes" else found(name, *rest)
    sys.meta_path.insert(0, Gone())
    sys.modules.pop("pipes", None)
import kvx.engines.kvpress
import fire
from fire.core import pipes
print(pipes.quote("a b"), "pipes" in sys.modules)
"""


@pytest.mark.parametrize("gone", [True, False])
def test_fire_is_imported_without_pipes(gone: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE.format(gone=gone)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    if "cannot import name 'pipes' from 'fire.core'" in done.stderr:
        pytest.skip("a fire that needs no pipes")
    assert done.returncode == 0, done.stderr
    quoted, left = done.stdout.rsplit(maxsplit=1)
    assert quoted == "'a b'"
    assert left == ("False" if gone else "True")


def test_the_pinned_python_has_fire_below_the_cap() -> None:
    """What the stand-in is for: it can go when kvpress takes a newer fire."""
    from importlib.metadata import version

    assert tuple(map(int, version("fire").split(".")[:2])) < (0, 7)
