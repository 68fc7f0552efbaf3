"""The points of a sweep, each once and with its manifest."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from kvx.cli.checks import refuse_certificate
from kvx.config.identity import resolved
from kvx.config.schema import Config, Measure
from kvx.data.manifest import Manifest
from kvx.errors import UserError
from kvx.guard.live_checks import live
from kvx.identity.hashing import digest
from kvx.points import SHARED, Point
from kvx.prepare.build import check_sources, ensure_manifest


def plan(configs: Sequence[Config]) -> list[Point]:
    """The distinct points of `configs`, each with its manifest (prepared if there is none yet).

    A point that is asked for both answers and latencies gets both. Raises `UserError` for different
    latency settings of one point, a controller that cannot act in it, or a certificate.
    """
    for config in configs:
        refuse_certificate(config)
    configs = live(configs)
    check_sources(configs)
    manifests: dict[str, tuple[Manifest, Path]] = {}
    variants: dict[tuple[int, ...], Point] = {}  # points of a sweep share what they agree on
    points: dict[Path, Point] = {}
    for config in configs:
        parts = tuple([id(getattr(config, name)) for name in SHARED])
        if parts in variants:
            point = variants[parts].beside(config)
        else:
            key = _decides_manifest(config)
            if key not in manifests:
                manifests[key] = ensure_manifest(config)
            point = variants[parts] = Point(config, *manifests[key])
        known = points.setdefault(point.dir, point)
        if known is not point:
            points[point.dir] = _both(known, point)
    return list(points.values())


def _decides_manifest(config: Config) -> str:
    model = [resolved(config.model), config.model.path]
    prompt = [resolved(config.prompt), config.prompt.date, config.decoding.max_new_tokens]
    return digest([resolved(config.dataset), model, prompt, config.paths.output])


def _both(one: Point, other: Point) -> Point:
    """One point for what two configurations of the same point ask for."""
    if not other.wants_latency:
        one, other = other, one
    if one.wants_latency:
        for name, value in asdict(one.config.latency).items():
            if value != (another := getattr(other.config.latency, name)):
                raise UserError(
                    f"latency.{name}={value},{another}: a point has one latency setting; "
                    "choose one value"
                )
    if one.config.measure is other.config.measure:
        return one
    config = replace(other.config, measure=Measure.both)
    return Point(config, other.manifest, other.manifest_dir)
