"""Caveats from a hazard model's origin on figures of the guard that uses it."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from kvx.errors import UserError
from kvx.identity import hazard_files


@dataclass(frozen=True)
class GuardedPoint:
    """A point whose controller has a forecast: of which hazard model (`guard.model`), for which
    LLM, and on prompts of which clusters.
    """

    controller: str
    hazard_model: str | None
    llm: str
    clusters: tuple[str, ...]


def caveats(points: Iterable[GuardedPoint]) -> Iterator[str]:
    """Sentences on prompts that a model was made from, and on LLMs that it was not made from.

    A model that cannot be read, or that does not say what it was made from, is passed over.
    """
    prompts: dict[str | None, set[str]] = {}
    llms: dict[str | None, set[str]] = {}
    names: dict[str | None, set[str]] = {}
    for point in points:
        key = point.hazard_model
        prompts.setdefault(key, set()).update(map(hazard_files.prompt_hash, point.clusters))
        llms.setdefault(key, set()).add(point.llm)
        names.setdefault(key, set()).add(point.controller)
    for key, hashes in prompts.items():
        try:
            made = json.loads(hazard_files.read(hazard_files.folder_of(key))[1])["data"]
            seen, of = hashes & set(made["prompts"]), set(made["models"])
        except (UserError, ValueError, KeyError, TypeError):
            continue
        named = ", ".join(sorted(names[key]))
        if seen:
            yield (
                f"{len(seen)} of {len(hashes)} prompts under controller {named} are among those "
                "its hazard model was made from: what it does there says little about other "
                "prompts. dataset.sampling.unseen_by="
                f"{'default' if key is None else key} leaves them out."
            )
        if strange := sorted(llms[key] - of):
            yield (
                f"The forecasts of controller {named} are those of a hazard model made from "
                f"answers of {', '.join(sorted(of))}, not of {', '.join(strange)}: kvx.train makes "
                "one of its own."
            )
