"""How what a report compares was made, and whether with the same libraries."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd

from kvx.identity.provenance import OF_TOKENS
from kvx.points import told_guard
from kvx.store.catalog import PointRecord


def mixed_versions(points: Sequence[PointRecord]) -> Iterator[str]:
    """A warning for each variant whose answers come from several versions of a library.

    Of points that were resumed with another version, both count.
    """
    variants: dict[str, list[PointRecord]] = defaultdict(list)
    for point in points:
        variants[str(point.info["variant_id"])].append(point)
    for same in variants.values():
        for name in OF_TOKENS:
            found: dict[str, list[str]] = defaultdict(list)
            for point in same:
                first = point.info.get("provenance", {}).get("versions", {})
                for versions in (first, *point.info.get("resumed_with", [])):
                    if name in versions and point.id not in found[versions[name]]:
                        found[versions[name]].append(point.id)
            if len(found) > 1:
                told = "; ".join(f"{v}: {', '.join(ids)}" for v, ids in sorted(found.items()))
                yield (
                    f"**Several versions of {name}.** {told}. Another version may give other "
                    "tokens, so a difference between these points need not come from compression."
                )


def reproducibility(points: Sequence[PointRecord], made_with: pd.Series) -> list[tuple[str, str]]:
    """One row per fact; several values where the points differ."""

    def all_of(*path: str, missing: str = "none", told: Callable[[Any], Any] | None = None) -> str:
        values = []
        for point in points:
            value: Any = point.info
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if told is not None and value is not None:
                value = told(value)
            if isinstance(value, dict):
                value = ", ".join(f"{k} {v}" for k, v in value.items())
            values.append(missing if value is None else str(value))
        return "<br>".join(f"`{v}`" for v in dict.fromkeys(values))

    return [
        ("command", all_of("provenance", "command")),
        ("git commit", all_of("provenance", "git_commit", missing="none (installed package)")),
        ("versions", all_of("provenance", "versions")),
        ("resumed with other versions", all_of("resumed_with", missing="no")),
        ("hardware", all_of("provenance", "hardware")),
        ("answers made with", "<br>".join(f"`{v}`" for v in made_with.dropna().unique()) or "none"),
        ("model", all_of("model_path")),
        ("model hash", all_of("model_hash")),
        ("model settings", all_of("config", "model")),
        ("decoding", all_of("config", "decoding")),
        ("press", all_of("config", "press", "method")),
        ("code of what is configured", all_of("sources", missing="not noted (an older kvx)")),
        ("controller", all_of("config", "controller")),
        ("guard", all_of("guard", told=lambda own: told_guard(own) or "as by default")),
        ("seed", all_of("seed")),
        ("manifest sha256", all_of("manifest", "sha256")),
        ("data revision", all_of("manifest", "source_revision")),
        ("prompt template hash", all_of("manifest", "template_hash")),
        ("day in the prompts", all_of("manifest", "date")),
    ]
