"""Memory and time of a plan, known without loading a model."""

from collections.abc import Sequence
from pathlib import Path

import hydra.utils

from kvx.data.manifest import Manifest
from kvx.engines.base import Engine, LatencyWork, PointFailed
from kvx.errors import RunFailedError
from kvx.points import Point, Request


def largest_prompts(manifest: Manifest) -> list[int]:
    """Tokens of the largest compressed prompt part in each bin."""
    bins = sorted({entry.bin for entry in manifest.entries})
    return [max(e.compressed_tokens for e in manifest.entries if e.bin == b) for b in bins]


def calibrate(points: Sequence[Point]) -> float:
    """Seconds per prompt token of the shortest prompt, alone at batch 1, after a warm-up.

    Loads the model. Raises `RunFailedError` if the request fails.
    """
    from kvx.data.frozen_examples import load_examples  # importing Arrow costs more than most plans

    point = points[0]
    engine: Engine = hydra.utils.get_class(point.config.engine._target_)(point.config)
    engine.check([point])
    entry = min(point.manifest.entries, key=lambda e: e.prompt_tokens)
    example = load_examples(point.manifest_dir)[entry.example_id]
    work = LatencyWork(point, ((Request(point, entry), example, 0),))
    measured = next(engine.measure([work]))
    if isinstance(measured, PointFailed):
        raise RunFailedError(f"calibration: {measured.message}")
    if measured.timing is None:
        raise RunFailedError(f"calibration: {measured.error_message}")
    return measured.timing.latency_s / entry.prompt_tokens


def runs_dir(point: Point) -> Path:
    """The folder of all experiments of this output directory."""
    return Path(point.config.paths.output) / "runs"
