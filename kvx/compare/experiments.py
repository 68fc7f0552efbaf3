"""A kvx experiment, or points of it, as results."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvx.compare.results import Result, asked_key, references_key, text_key
from kvx.data.frozen_examples import load_examples
from kvx.errors import UserError
from kvx.guard.own_code import controller_code
from kvx.identity.user_code import press_parameters, told
from kvx.points import OWN, told_guard
from kvx.store.catalog import PointRecord, finished_points, read_frame
from kvx.store.shards import is_by_other_code

KIND = "kvx"
# of a press's configuration, what says how it works and not what is known of it
PRESS = ("method", "layers", "queries")
DIRECTION = ("metric", "higher_is_better")
MANIFEST = ("key", "template_hash", "source_revision", "tokenizer", "tokenizer_hash")


def read_experiment(folder: Path, start: str = "") -> list[Result]:
    """The finished points whose ids begin with `start`, by id.

    Raises `UserError` if there is none, or if one is not scored.
    """
    points = [p for p in finished_points(folder) if p.id.startswith(start)]
    if not points:
        known = ", ".join(p.id for p in finished_points(folder)[:6])
        raise UserError(f"{folder}: no finished point begins with {start}; there are {known}")
    return [_read(point, folder) for point in points]


def _read(point: PointRecord, folder: Path) -> Result:
    path = point.dir / "scores.parquet"
    if not path.is_file():
        raise UserError(f"{point.dir}: not scored yet; run kvx.score with the same arguments")
    rows = read_frame([path]).sort_values("primary", ascending=False, kind="stable")
    names = list(dict.fromkeys(rows["metric"]))
    if rows.duplicated(["example_id", "metric"]).any():
        twice = rows.loc[rows.duplicated(["example_id", "metric"]), "example_id"].iloc[0]
        raise UserError(f"{path}: example {twice} is scored twice; delete the file, run kvx.score")
    scores = rows.pivot(index="example_id", columns="metric", values="score")[names]
    examples = load_examples(point.manifest_dir(folder.parent.parent))
    clusters = rows.drop_duplicates("example_id").set_index("example_id")["cluster"]
    asked = [examples[i] for i in scores.index]
    info = point.info
    return Result(
        path=point.dir,
        kind=KIND,
        label=f"{folder.name}/{point.id}",
        examples=pd.DataFrame(
            {
                "id": scores.index.astype(str),
                "prompt": [text_key(e.context, e.question) for e in asked],
                "asked": [asked_key(e.question, e.answers) for e in asked],
                "references": [references_key(e.answers) for e in asked],
                "cluster": clusters[scores.index].to_numpy(),
            }
        ),
        scores=scores.reset_index(drop=True).astype(np.float64),
        higher_is_better={m: bool(h) for m, h in zip(*(rows[n] for n in DIRECTION), strict=True)},
        place={
            "press": str(info["press"]),
            "budget": str(info["budget_label"]),
            "controller": str(info["controller"]),
            "dataset": str(info["dataset"]),
            "model": str(info["model"]),
            "seed": str(info["seed"]),
        },
        behind={
            "press": press_parameters(info),
            "controller": _controller(point),
            "model": {k: v for k, v in info["config"].items() if k not in (*OWN, "dataset")},
            "dataset": info["config"]["dataset"],
        },
        is_full=point.is_full_cache and not point.is_guarded,
        settings=settings_of(point, folder.parent.parent),
        notes=["scored by other code of kvx than this"] if is_by_other_code(path) else [],
    )


def _controller(point: PointRecord) -> dict[str, Any]:
    if not point.is_guarded:
        return {}
    info = point.info
    return {
        "controller": info["config"]["controller"],
        "code": told(controller_code(info)),
        "guard": told_guard(info["guard"]),
    }


def settings_of(point: PointRecord, output: Path) -> dict[str, Any]:
    """What shapes a point's answers, flat, by dotted names: its configuration, data, versions."""
    frozen = json.loads((point.manifest_dir(output) / "manifest.json").read_text(encoding="utf-8"))
    info = point.info
    config = {k: v for k, v in info["config"].items() if k != "experiment_name"}
    config["press"] = {k: v for k, v in config["press"].items() if k in PRESS}
    manifest = {k: frozen.get(k) for k in MANIFEST}
    about = {
        "model_hash": info.get("model_hash"),
        "manifest": manifest,
        "versions": info["provenance"].get("versions", {}),
    }
    return dict(_flat(config | about))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
