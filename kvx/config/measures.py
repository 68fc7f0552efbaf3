"""What a run measures, and how."""

from dataclasses import dataclass
from enum import Enum

from kvx.config.fields import option


class Measure(Enum):
    """Answers from shared, batched work, latencies of requests that run alone, or fidelity."""

    quality = "quality"
    latency = "latency"
    fidelity = "fidelity"  # next-token distributions against the full cache's
    both = "both"  # quality and latency
    quality_fidelity = "quality_fidelity"
    latency_fidelity = "latency_fidelity"
    all = "all"

    @property
    def parts(self) -> frozenset["Measure"]:
        """Which of the first three it asks for."""
        names = {"both": "quality_latency", "all": "quality_latency_fidelity"}
        return frozenset(Measure[n] for n in names.get(self.name, self.name).split("_"))

    def with_(self, other: "Measure") -> "Measure":
        """What asks for all that the two do."""
        return next(m for m in Measure if m.parts == self.parts | other.parts)


@dataclass
class LatencyConfig:
    """Requests that are measured alone, at batch 1."""

    n_per_bin: int = option(2, "examples of each bin that are measured alone", at_least=1)
    warmup: int = option(1, "requests before the first one that counts, per point", at_least=0)
    repeats: int = option(3, "measurements of each example", at_least=1)


@dataclass
class FidelityConfig:
    """Requests that are compared with the full cache, token by token."""

    n_per_bin: int | None = option(
        None, "examples of each bin that are compared with the full cache; null: all", at_least=1
    )
