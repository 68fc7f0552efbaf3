"""Random numbers for presses that draw: one stream per row, the same whoever runs beside it."""

import contextlib
from collections.abc import Iterator

import torch


class RandomStream:
    """torch's global generators, as if nobody else drew from them."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device
        self._states: list[torch.Tensor] | None = None

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Draws inside this context continue this row's stream; the outer state comes back."""
        cuda = self.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.device] if cuda else []):
            if self._states is None:
                torch.manual_seed(self.seed)
            else:
                torch.set_rng_state(self._states[0])
                if cuda:
                    torch.cuda.set_rng_state(self._states[1], self.device)
            yield
            self._states = [torch.get_rng_state()]
            if cuda:
                self._states.append(torch.cuda.get_rng_state(self.device))
