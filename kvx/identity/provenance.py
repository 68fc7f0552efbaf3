"""Where a result comes from: code, library versions, hardware and the command that made it."""

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from kvx import __version__
from kvx.config.folders import package_dir

OF_TOKENS = ("torch", "transformers", "kvpress")  # another version may give other tokens
LIBRARIES = (*OF_TOKENS, "hydra-core", "numpy", "pandas", "pyarrow", "scipy")
# variables that change how sums are rounded
ENVIRONMENT = (
    "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "ONEDNN_DEFAULT_FPMATH_MODE", "PYTORCH_SDP_KERNEL",
)  # fmt: skip


def command_line() -> str:
    """The command as typed, with `python -m` restored."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return shlex.join(["python", "-m", f"kvx.{program.parent.name}", *sys.argv[1:]])
    return shlex.join([program.name, *sys.argv[1:]])


@cache
def git_commit() -> str | None:
    """Commit of the checkout kvx runs from, `-dirty` if it has changes; None for an installed
    wheel.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package_dir().parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != package_dir().parent:
            return None
        commit = git("rev-parse", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


@cache
def versions() -> dict[str, str]:
    found = {"kvx": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def usable_cores() -> int:
    """Cores that the container or job may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def hardware() -> dict[str, Any]:
    """CPU, cores and memory; the GPU too if torch is loaded (it is not imported for this)."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file() and (found := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        cpu = found[1]
    described: dict[str, Any] = {
        "cpu": cpu,
        "cores": usable_cores(),
        "system": platform.platform(),
        "memory_bytes": psutil.virtual_memory().total,
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        described["torch_threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            described["gpu"] = torch.cuda.get_device_name()
    return described


def describe() -> dict[str, Any]:
    return {
        "command": command_line(), "git_commit": git_commit(), "versions": versions(),
        "hardware": hardware(),
        "environment": {n: os.environ[n] for n in ENVIRONMENT if n in os.environ},
    }  # fmt: skip
