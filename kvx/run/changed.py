"""What a run says before it makes points again because code, files or data changed."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kvx.config.identity import is_guarded, resolved
from kvx.data.tokenizer import model_hash
from kvx.identity import provenance
from kvx.identity.hashing import digest
from kvx.identity.user_code import is_users
from kvx.points import Point, experiment_dir, guard_identity

log = logging.getLogger(__name__)

Json = Mapping[str, Any]
Lines = Iterator[tuple[tuple[str, ...], str]]


def tell(missing: Sequence[Point], points: Sequence[Point]) -> None:
    """Log why points of the same command are new, and which libraries had other versions before."""
    folder = experiment_dir(points[0].config)
    infos = {str(info["id"]): info for info in _described(folder)}
    lines: dict[tuple[str, ...], str] = {}
    for key, line in [*_changes(missing, infos), *_versions(points, infos)]:
        lines.setdefault(key, line)
    for line in lines.values():
        log.warning("run: %s", line)


def _described(folder: Path) -> Iterator[Json]:
    """Every point's `point.json`, oldest first; damaged ones are skipped."""
    paths = {path: path.stat().st_mtime_ns for path in (folder / "points").glob("*/point.json")}
    for path in sorted(paths, key=lambda p: paths[p]):
        try:
            info = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(info, dict) and {"id", "config", "manifest"} <= info.keys():
            yield info


def _changes(missing: Sequence[Point], infos: Mapping[str, Json]) -> Lines:
    """Why points are new though earlier ones had the same configuration, except for the budget."""
    earlier = {_asked(info["config"]): info for info in infos.values()}  # the last begun
    for point in missing:
        same = earlier.get(_asked(resolved(point.config)))
        if point.id not in infos and same is not None:
            yield from _differences(point, same)


def _asked(config: Json) -> str:
    return digest({name: value for name, value in config.items() if name != "budget"}, 64)


def _differences(point: Point, old: Json) -> Lines:
    new, since = "new points are made", f"changed since {old['id']} was run"
    before, model = old.get("sources"), point.config.model.name
    code = dict(_code(point, old, since, new))
    yield from code.items()
    if old.get("model_hash") != model_hash(point.config.model):
        line = f"the files of model={model} {since}: {new}"
        if before is None:
            line = f"an older kvx ran {old['id']} and hashed only parts of model={model}: {new}"
        yield ("model", model), line
    elif old["manifest"].get("source_revision") != point.manifest.source_revision:
        yield ("data",), f"the data of {point.manifest.dataset_id} {since}: {new}"
    elif not code and old["manifest"].get("key") != point.manifest.key:
        data = point.manifest.dataset_id
        yield ("prompts",), f"the prompts or the choice of examples of {data} {since}: {new}"
    if is_guarded(point.config) and old.get("guard") != guard_identity(point.config):
        name = point.config.controller.name
        yield ("guard", name), f"the hazard model of controller={name} {since}: {new}"


def _code(point: Point, old: Json, since: str, new: str) -> Lines:
    before = old.get("sources")
    for target, source in point.sources.items():
        if target.startswith("kvx."):  # a new version of kvx changes no ids
            continue
        if before is not None and before.get(target, source) != source:
            yield ("code", target), f"the code of {target} {since}: {new}"
        elif before is None and is_users(source):
            line = f"an older kvx ran {old['id']} and did not record the code of {target}: {new}"
            yield ("code", target), line


def _versions(points: Sequence[Point], infos: Mapping[str, Json]) -> Lines:
    """Libraries whose version differs from when points of this command were run or begun."""
    here = provenance.versions()
    for point in points:
        there = infos.get(point.id, {}).get("provenance", {}).get("versions", {})
        for name in provenance.OF_TOKENS:
            if name in there and name in here and there[name] != here[name]:
                line = f"{point.id} was begun with {name} {there[name]}, this is {here[name]}: "
                yield (name, there[name]), line + "comparisons differ in more than the budget"
