"""Measuring what a request really used: KV entries and bytes, peak memory."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from kvx.engines.kvpress.layers import CachedLayer

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def masked_entries(layers: Sequence[CachedLayer], heads: Sequence[int]) -> float:
    """Entries per KV head that a mask press hides from attention, mean over `layers`.

    `heads` are their numbers of KV heads.
    """
    found = [getattr(layer.attention, "masked_key_indices", None) for layer in layers]
    hidden = sum(len(indices[0]) for indices in found if indices is not None)
    return hidden / sum(heads)


def clear_masks(model: Any) -> None:
    """Forget what a mask press, or kvpress's attention, left on the attention modules.

    It would corrupt the next request.
    """
    for module in model.modules():
        vars(module).pop("masked_key_indices", None)


@contextlib.contextmanager
def unmasked(model: Any) -> Iterator[None]:
    """Inside, no entry is hidden from attention; afterwards those are that were before."""
    hidden = {
        module: vars(module).pop("masked_key_indices")
        for module in model.modules()
        if "masked_key_indices" in vars(module)
    }
    try:
        yield
    finally:
        clear_masks(model)
        for module, indices in hidden.items():
            module.masked_key_indices = indices


class PeakMemory:
    """Peak memory since construction: allocated device memory on CUDA, resident memory on Linux.

    Of a model on several devices, the sum of their peaks.
    """

    def __init__(self, *devices: torch.device) -> None:
        self.gpus = [device for device in devices if device.type == "cuda"]
        self.supported = True
        if self.gpus:
            for device in self.gpus:
                torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            _CLEAR.write_text("5")
        except OSError:
            self.supported = False

    def read_bytes(self) -> int | None:
        """None where the system offers no way to measure it."""
        if self.gpus:
            return sum(int(torch.cuda.max_memory_allocated(device)) for device in self.gpus)
        if not self.supported:
            return None
        with contextlib.suppress(OSError):
            if found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text()):
                return int(found[1]) * 1024
        return None


def synchronize(*devices: torch.device) -> None:
    """Wait for the devices, so that wall-clock times mean something."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type == "mps":
            torch.mps.synchronize()
