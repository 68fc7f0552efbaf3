"""Measuring what a request really used: KV entries and bytes, peak memory."""

import contextlib
import re
from pathlib import Path
from typing import Any

import torch

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
