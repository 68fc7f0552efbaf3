"""Random numbers for presses that draw: one stream per row, the same whoever runs beside it."""

import contextlib
from collections.abc import Iterator, Sequence

import torch


class RandomStream:
    """torch's global generators of `devices` and the CPU, as if nothing else drew from them."""

    def __init__(self, seed: int, devices: torch.device | Sequence[torch.device]) -> None:
        self.seed = seed
        self.devices = (devices,) if isinstance(devices, torch.device) else tuple(devices)
        self._states: list[torch.Tensor] | None = None

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Draws inside this context continue this row's stream; the outer state comes back."""
        cuda = [device for device in self.devices if device.type == "cuda"]
        with torch.random.fork_rng(devices=cuda):
            if self._states is None:
                torch.manual_seed(self.seed)
            else:
                torch.set_rng_state(self._states[0])
                for device, state in zip(cuda, self._states[1:], strict=True):
                    torch.cuda.set_rng_state(state, device)
            yield
            self._states = [torch.get_rng_state()]
            self._states += [torch.cuda.get_rng_state(device) for device in cuda]
