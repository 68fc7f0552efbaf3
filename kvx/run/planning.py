"""The points of a sweep, each once and with its manifest."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from kvx.cli.checks import refuse_certificate
from kvx.config.identity import resolved
from kvx.config.measures import Measure
from kvx.config.schema import Config
from kvx.data.manifest import Manifest
from kvx.errors import UserError
from kvx.guard.live_checks import live
from kvx.identity.hashing import digest
from kvx.points import SHARED, Point
from kvx.prepare.build import check_sources, ensure_manifest


def plan(configs: Sequence[Config]) -> list[Point]:
    """The distinct points of `configs`, each with its manifest (prepared if there is none yet).

    A point that is asked for several kinds of results gets them all. Raises `UserError` for
    different latency or fidelity settings of one point, a controller that cannot act in it,
    or a certificate.
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
    settings = {}
    for kind in (Measure.latency, Measure.fidelity):
        asking = [c for c in (one.config, other.config) if kind in c.measure.parts]
        for name, value in asdict(getattr(asking[0], kind.name)).items() if asking else ():
            if value != (another := getattr(getattr(asking[-1], kind.name), name)):
                raise UserError(
                    f"{kind.name}.{name}={value},{another}: a point has one {kind.name} setting; "
                    "choose one value"
                )
        if asking:
            settings[kind.name] = getattr(asking[0], kind.name)
    measure = one.config.measure.with_(other.config.measure)
    config = replace(one.config, measure=measure, **settings)
    return Point(config, one.manifest, one.manifest_dir)
