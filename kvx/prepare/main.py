"""python -m kvx.prepare: freeze the binned selection of examples (the manifest)."""

from kvx.cli.command import stage
from kvx.config.schema import Config


def prepare(points: list[Config]) -> None:
    from kvx.prepare.build import ensure_manifest

    for config in points:
        ensure_manifest(config)


main = stage("prepare", prepare)
