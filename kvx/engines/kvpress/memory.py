"""How much memory this process may still take: of a GPU, or of the machine, container or job."""

import contextlib
import os
import re
import resource
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from kvx.config.schema import SHARING, SHARING_GPU

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
MIB = 2**20
UNITS = {"": MIB, "K": 2**10, "M": MIB, "G": 2**30, "T": 2**40}  # SLURM's; without one: MiB
GROUPS = "proc/self/cgroup"
# per version: the mount point, the files of limits and of usage, and the line of memory.stat for
# the page cache, which the kernel gives back
CGROUPS = {
    2: ("sys/fs/cgroup", ("memory.max", "memory.high"), "memory.current", "inactive_file"),
    1: (
        "sys/fs/cgroup/memory",
        ("memory.limit_in_bytes",),
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
}


def free_bytes(device: torch.device) -> int:
    """Memory that is free now for this process: the device's on CUDA, else the machine's.

    Workers that share a GPU, or a machine, have equal parts of it.
    """
    return _free_on_gpu(device) if device.type == "cuda" else _free_in_host(os.environ)


def free_for_caches(layers: Mapping[torch.device, int]) -> int:
    """Bytes that the caches of a model may take, which has these numbers of `layers` per device.

    Each device holds its layers' share of every cache: the one with the least room for it decides.
    """
    n = sum(layers.values())
    return min(free_bytes(device) * n // here for device, here in layers.items())


def _free_on_gpu(device: torch.device) -> int:
    workers = _number(os.environ, SHARING_GPU) or 1
    own = torch.cuda.memory_allocated(device)
    kept_by_torch = torch.cuda.memory_reserved(device) - own
    free, total = torch.cuda.mem_get_info(device)
    return part_of_gpu(free + kept_by_torch, total, own, workers)


def part_of_gpu(free: int, total: int, own: int, workers: int) -> int:
    """What one of several workers on a GPU may still take, in bytes.

    Others may have loaded their model already, which `free` reflects, or may do so later, for which
    only an equal part of the `total` leaves room.
    """
    if workers == 1:
        return int(free)
    return int(max(0, min(total // workers - own, free // workers)))


def _free_in_host(environment: Mapping[str, str]) -> int:
    workers = _number(environment, SHARING) or 1
    own = psutil.Process().memory_info()
    now = min([psutil.virtual_memory().available, *cgroup_free(Path("/"))])
    free = [now // workers]
    if (job := slurm_bytes(environment)) is not None:  # of all that the job runs on this node
        free.append(job // workers - own.rss)
    with contextlib.suppress(OSError, ValueError):  # ulimit -v: of one process
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            free.append(limit - own.vms)
    return int(max(0, min(free)))


def slurm_bytes(environment: Mapping[str, str]) -> int | None:
    """The memory that SLURM gives this job on this node; None without a limit.

    A job has at most one of memory per node, per CPU and per GPU; 0 is all there is.
    """
    if (node := _size(environment.get("SLURM_MEM_PER_NODE"))) is not None:
        return node or None
    if per_cpu := _size(environment.get("SLURM_MEM_PER_CPU")):
        cpus = _number(environment, "SLURM_CPUS_ON_NODE")
        cpus = cpus or _number(environment, "SLURM_JOB_CPUS_PER_NODE")  # "4(x2)": each of two nodes
        return per_cpu * (cpus or _number(environment, "SLURM_CPUS_PER_TASK") or 1)
    if per_gpu := _size(environment.get("SLURM_MEM_PER_GPU")):
        listed = environment.get("SLURM_JOB_GPUS") or environment.get("SLURM_STEP_GPUS") or ""
        gpus = _number(environment, "SLURM_GPUS_ON_NODE") or len(_listed(listed))
        return per_gpu * (gpus or 1)
    return None


def _size(text: str | None) -> int | None:
    """Bytes of SLURM's `4096`, `4G` or `500MB`; None for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)(?:i?B)?", (text or "").strip(), re.IGNORECASE)
    return int(float(found[1]) * UNITS[found[2].upper()]) if found else None


def _number(environment: Mapping[str, str], name: str) -> int | None:
    found = re.match(r"\d+", environment.get(name, ""))
    return int(found[0]) if found else None


def _listed(text: str) -> list[int]:
    """The numbers of `0,2-3`."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        if first.isdigit():
            found += range(int(first), int(last if last.isdigit() else first) + 1)
    return found


def cgroup_free(root: Path) -> list[int]:
    """What each limit of this process's control group, and of those around it, leaves free.

    Version 1 and 2; `root` holds /proc and /sys. Cache of files counts as free.
    """
    found = []
    for version, path in _own_groups(root):
        mount, limits, used, cached = CGROUPS[version]
        top = root / mount
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            taken = _read_number(folder / used)
            if taken is not None:
                taken -= min(taken, _cached(folder / "memory.stat", cached))
                values = [_read_number(folder / name) for name in limits]
                # no limit is "max", or in version 1 a number near 2**63
                found += [v - taken for v in values if v is not None and v < 2**60]
            if folder == top:
                break
    return found


def _own_groups(root: Path) -> Iterator[tuple[int, str]]:
    """Version and path of the control groups of memory that this process is in."""
    with contextlib.suppress(OSError):
        for line in (root / GROUPS).read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                yield 2, path
            elif "memory" in controllers.split(","):
                yield 1, path


def _cached(stat: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        if found := re.search(rf"^{name} (\d+)$", stat.read_text(), re.MULTILINE):
            return int(found[1])
    return 0


def _read_number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None
