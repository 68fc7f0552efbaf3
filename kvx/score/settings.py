"""How a point is judged: by the settings of its run, unless `score.*` replaces them.

The rest of the present command line says nothing about points that were run with another one.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from kvx.config.folders import conf_dir
from kvx.config.schema import Config, Reasoning
from kvx.data.manifest import dataset_id
from kvx.scoring.failure_rules import ANY
from kvx.scoring.metrics import METRICS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judging:
    """Metrics by name (the first is the primary one), the answer's format, and what is cut off."""

    metrics: tuple[str, ...]
    answer_format: str | None
    until: tuple[str, ...] = ()
    reasoning: Reasoning = Reasoning.strip

    @property
    def identity(self) -> list[Any]:
        """Everything that decides scores, with the source of a user's metrics."""
        own = METRICS.sources(self.metrics)
        settings = [self.metrics, self.answer_format, self.until, self.reasoning.name]
        return [*settings, own] if own else settings


def judging_of(info: dict[str, Any], config: Config) -> Judging:
    """How the point with the point.json `info` is judged."""
    asked = config.score
    answer_format = asked.answer_format or info["answer_format"]
    return Judging(
        tuple(asked.metrics or info["metrics"]),
        None if answer_format == ANY else answer_format,
        tuple(_until(info, config) if asked.until is None else asked.until),
        asked.reasoning,
    )


def _until(info: dict[str, Any], config: Config) -> list[str]:
    """Stop strings: the run's, else its dataset's, even if it was decoded without them.

    An older kvx recorded none: then the present dataset's count.
    """
    if info.get("until") is not None:
        decoded: list[str] = info["config"]["decoding"].get("until") or []
        return decoded or info["until"]
    if info["dataset"] == dataset_id(config.dataset):
        return config.dataset.until
    return _shipped_until(info["dataset"])


def _shipped_until(dataset: str) -> list[str]:
    """`until` of the shipped dataset with this id; none if there is no such dataset."""
    folder = conf_dir() / "dataset"
    for path in sorted(folder.glob("*.yaml")):
        fields: Any = OmegaConf.load(path)
        for inherited in reversed([d for d in fields.get("defaults", []) if isinstance(d, str)]):
            base = folder / f"{inherited}.yaml"
            fields = OmegaConf.merge(OmegaConf.load(base), fields) if base.is_file() else fields
        if f"{fields.get('name')}__{fields.get('task')}" == dataset:
            return [str(stop) for stop in fields.get("until", [])]
    return []


def tell_of_others(infos: Sequence[dict[str, Any]], config: Config) -> None:
    """Log each field of the present command line that the points were run with otherwise."""
    today = {
        "metrics": config.dataset.metrics,
        "answer_format": config.dataset.answer_format,
        "until": config.dataset.until,
    }
    own = [info for info in infos if info["dataset"] == dataset_id(config.dataset)]
    for name, value in today.items():
        if getattr(config.score, name) is not None:
            continue
        others = [i[name] for i in own if name in i and i[name] != value]
        if others:
            log.info(
                "score: %d points were run with dataset.%s=%s, which stands; score.%s=%s replaces "
                "it",
                len(others),
                name,
                _shown(others[0]),
                name,
                _shown(value),
            )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_shown, value))}]"
    return ANY if value is None else repr(value) if "\n" in str(value) else str(value)
