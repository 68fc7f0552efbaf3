"""What other processes do to a machine while something is measured on it."""

import os
import subprocess
import time
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]
import torch

ASK_AGAIN_S = 30.0
BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


class OthersLoad:
    """CPU time that other processes take, from construction on, of the cores this one may use."""

    def __init__(self) -> None:
        self._begun, self._before = time.monotonic(), _cpu_s()

    def cpu_share(self) -> float | None:
        """In [0, 1]; None where the system does not tell.

        The kernel counts in hundredths of a second: a mean over many measurements says more than
        one of a short request.
        """
        now, spent = _cpu_s(), time.monotonic() - self._begun
        if now is None or self._before is None or spent <= 0:
            return None
        busy, own = now.busy - self._before.busy, now.own - self._before.own
        return min(1.0, max(0.0, busy - own) / (spent * now.cores))


@dataclass(frozen=True)
class _Cpu:
    """Seconds that the `cores` this process may use were busy, and what it took of them."""

    busy: float
    own: float
    cores: int


def _cpu_s() -> _Cpu | None:
    try:
        cores = psutil.cpu_times(percpu=True)
    except (OSError, RuntimeError, NotImplementedError):
        return None
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cores))
    mine = [core for number, core in enumerate(cores) if number in usable]
    # guest time is in user time already
    busy = sum(getattr(core, name, 0.0) for core in mine for name in BUSY)
    return _Cpu(busy, time.process_time(), len(mine)) if mine else None


_asked: dict[str, tuple[float, int | None]] = {}


def gpu_others(device: torch.device) -> int | None:
    """How many other processes compute on this GPU; None where that is not known.

    Asked again every `ASK_AGAIN_S` seconds: the answer takes a good part of one.
    """
    if device.type != "cuda":
        return None
    at, known = _asked.get(str(device), (-ASK_AGAIN_S, None))
    if time.monotonic() - at >= ASK_AGAIN_S:
        known = _ask(getattr(torch.cuda.get_device_properties(device), "uuid", None))
        _asked[str(device)] = (time.monotonic(), known)
    return known


def _ask(uuid: object) -> int | None:
    if uuid is None:  # torch before 2.6
        return None
    command = [
        "nvidia-smi",
        "--query-compute-apps=pid",
        "--format=csv,noheader",
        "--id",
        f"GPU-{uuid}",
    ]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if asked.returncode:
        return None
    pids = [line.strip() for line in asked.stdout.splitlines() if line.strip()]
    if not pids:
        return None  # we compute there: a container that hides processes hides the others too
    return len(pids) - 1  # one of them is this one, maybe under the number of another namespace
