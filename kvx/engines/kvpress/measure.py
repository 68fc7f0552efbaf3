"""Measuring what a request really used: KV entries and bytes, peak memory."""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch

from kvx.config import SHARING

_CGROUP = "/sys/fs/cgroup/memory."
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values a cache holds (views count what they show)."""
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in cache.layers
        for tensor in (layer.keys, layer.values)
    )


def cache_entries(cache: Any) -> float:
    """Entries per KV head, mean over layers."""
    lengths: list[int] = [layer.keys.shape[2] for layer in cache.layers]
    return sum(lengths) / len(lengths)


def masked_entries(model: Any, cache: Any) -> float:
    """Entries per KV head that a mask press hides from attention, mean over layers."""
    hidden = 0
    for layer in model.modules():
        if (indices := getattr(layer, "masked_key_indices", None)) is not None:
            hidden += len(indices[0])
    heads: int = sum(layer.keys.shape[1] for layer in cache.layers)
    return hidden / heads


def clear_masks(model: Any) -> None:
    """Forget what a mask press left on the attention modules: it would corrupt the next request."""
    for module in model.modules():
        if getattr(module, "masked_key_indices", None) is not None:
            module.masked_key_indices = None


def entry_bytes(model: Any) -> int:
    """Bytes of one token's keys and values in all layers, from the model's configuration."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * model.dtype.itemsize)


def free_bytes(device: torch.device) -> int:
    """Memory that is free now for this process: the device's on CUDA, else the machine's.

    Of the machine's, what a container or a SLURM job may use, shared with the other workers here.
    """
    if device.type == "cuda":
        kept_by_torch = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + kept_by_torch)
    limits = [psutil.virtual_memory().available]
    with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
        limit, used = (int(Path(_CGROUP + name).read_text()) for name in ("max", "current"))
        limits.append(limit - used)
    if job_mib := os.environ.get("SLURM_MEM_PER_NODE"):
        limits.append(int(job_mib) * 2**20 - psutil.Process().memory_info().rss)
    return int(max(0, min(limits)) // int(os.environ.get(SHARING, "1")))


class PeakMemory:
    """Peak memory since construction: allocated device memory on CUDA, resident memory on Linux."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.supported = True
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            _CLEAR.write_text("5")
        except OSError:
            self.supported = False

    def read_bytes(self) -> int | None:
        """None where the system offers no way to measure it."""
        if self.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.device))
        if not self.supported:
            return None
        with contextlib.suppress(OSError):
            if found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text()):
                return int(found[1]) * 1024
        return None


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that wall-clock times mean something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
