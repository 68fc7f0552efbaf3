"""Structured configuration: the schema of `conf/` and of the command line.

Every field given in either is checked against it. What is known of a field stands at the
field (`kvx.config.fields`). This module imports no
torch, so that `--help` and `--cfg job` stay fast.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from kvx.config import field_checks
from kvx.config.analyze import AnalyzeConfig
from kvx.config.certify import CertifyConfig
from kvx.config.compare import CompareConfig
from kvx.config.controller import ControllerConfig
from kvx.config.dataset import DatasetConfig, stops
from kvx.config.engine import EngineConfig, OpenAIConfig
from kvx.config.export import ExportConfig
from kvx.config.fields import free_form, option
from kvx.config.folder_names import folder_name
from kvx.config.folders import cache_dir, package_dir
from kvx.config.guard import GuardConfig
from kvx.config.language_model import ModelConfig
from kvx.config.measures import FidelityConfig, LatencyConfig, Measure
from kvx.config.press_config import Degenerate as Degenerate
from kvx.config.press_config import PressConfig as PressConfig
from kvx.config.serve import ServeConfig
from kvx.config.simulate import SimulateConfig
from kvx.config.tasks import tasks_laid_over
from kvx.config.train import TrainConfig, VerifyConfig

if TYPE_CHECKING:
    Controller = ControllerConfig
else:  # Hydra composes the settings of any class; `kvx.config.controller_options` makes it of them
    Controller = dict[str, Any]

# environment variables: how many workers share this machine's memory, and their GPU's
SHARING = "KVX_WORKERS_HERE"
SHARING_GPU = "KVX_WORKERS_ON_GPU"


class BudgetKind(Enum):
    ratio = "ratio"
    tokens = "tokens"
    certified = "certified"  # what a certificate allows; kvx.serve puts one of the others in place


class Reasoning(Enum):
    """Whether what a model thought before its answer is scored too."""

    strip = "strip"
    keep = "keep"


class Signals(Enum):
    """The signals recorded for every generated token."""

    off = "off"
    light = "light"  # log-prob and entropy of the chosen token
    full = "full"  # what the guard learns from, and the probe of every prompt


@dataclass
class BudgetConfig:
    """How many of the prompt's KV entries are kept: a fraction of them, or a number."""

    kind: BudgetKind = option(BudgetKind.ratio, "which of the others is read")
    ratio: float = option(
        1.0, "fraction of the entries; 1.0 is the full cache", above=0, at_most=1, typed="budget"
    )
    tokens: int | None = option(None, "number of entries; budget=256t for short", at_least=1)

    @property
    def amount(self) -> float | int:
        """The number that is read: a fraction of the entries, or as many of them."""
        if self.kind is not BudgetKind.tokens:
            return self.ratio
        assert self.tokens is not None
        return self.tokens

    @property
    def key(self) -> tuple[BudgetKind, float | int]:
        """Distinguishes it from other budgets."""
        return self.kind, self.amount

    @property
    def is_full(self) -> bool:
        """Whether it asks for the full cache, of prompts of any length."""
        return self.kind is BudgetKind.ratio and self.ratio == 1.0


@dataclass
class PromptConfig:
    query_aware: bool = option(
        False, "false: the press sees the context only, as in kvpress; true: the question too"
    )
    date: str | None = option(
        None,
        "the day (2026-01-31) that a chat template is told which asks for one; null: the day the "
        "manifest was made, and today for kvx.serve. The manifest's own is part of its points' ids",
        neutral=True,
        derived=True,
        check=field_checks.day,
    )
    system: str | None = option(
        None, "a system message before the user's, through the model's chat template", added=True
    )
    # Any: Hydra merges no mapping into null
    template_kwargs: Any = option(
        None,
        "arguments handed to the chat template, such as {enable_thinking: true}",
        added=True,
        check=field_checks.template_kwargs,
    )


@dataclass
class DecodingConfig:
    """Greedy at temperature 0, else seeded sampling."""

    max_new_tokens: int = option(64, "tokens of an answer at most", at_least=1)
    temperature: float = option(0.0, "0: greedy", at_least=0, words="0 (greedy) or more")
    top_p: float = option(1.0, "nucleus sampling", above=0, at_most=1)
    top_k: int = option(0, "0: all tokens", at_least=0, words="0 (all) or more")
    timeout_s: float | None = option(
        None, "per request; with a limit, requests run one at a time", above=0
    )
    until: list[str] = option(
        [], "stop strings: the text ends before the first of them", added=True, check=stops
    )


@dataclass
class RunConfig:
    shard_requests: int = option(
        8, "a kill loses at most this many requests of each point, …", at_least=1
    )
    shard_s: float = option(20.0, "… or what was done in this many seconds", at_least=0)
    progress: bool = option(True, "show progress")
    retry_failed: bool = option(False, "ask again what got no response (time-outs, errors)")


@dataclass
class ScoreConfig:
    """Settings that replace those of the points' runs; null: those they were run with."""

    metrics: list[str] | None = option(None, "metrics of an answer", scoring=True)
    answer_format: str | None = option(
        None, "number, json, yes_no, or any: none is asked for", scoring=True
    )
    until: list[str] | None = option(
        None, "stop strings at which answers are cut", scoring=True, check=stops
    )
    reasoning: Reasoning = option(
        Reasoning.strip,
        "strip: <think>…</think> and the like are not part of the answer",
        scoring=True,
    )


class PlanFormat(Enum):
    text = "text"
    json = "json"


@dataclass
class PlanConfig:
    calibrate: bool = option(False, "load the model and measure one short prompt")
    format: PlanFormat = option(PlanFormat.text, "how the plan is printed")


@dataclass
class StatusConfig:
    points: bool = option(False, "a line per point instead of one per press")
    watch: bool = option(
        False,
        "look again until every point has ended: on a terminal a table that changes in place, "
        "elsewhere a new one whenever something changed",
    )
    every_s: float = option(2.0, "seconds between looks", above=0)


@dataclass
class ReportConfig:
    open: bool = option(False, "show report.html in the browser when it is made")


@dataclass
class PathsConfig:
    output: str = option("outputs", "folder of results, manifests and figures", sweeps=True)
    multirun: str = option("multirun", "folder of logs")
    cache: str = option(MISSING, "folder of what is downloaded and computed once")


@dataclass
class Config:
    """Everything one point needs. One object a point travels through every stage."""

    experiment_name: str = option(
        "default",
        "results go to <paths.output>/runs/<experiment_name>",
        sweeps=True,
        check=folder_name,
    )
    seed: int = option(0, "seed of a point's sampling")
    dataset: DatasetConfig = option(DatasetConfig)
    engine: EngineConfig = option(EngineConfig)
    model: ModelConfig = option(ModelConfig)
    press: PressConfig = option(PressConfig)
    budget: BudgetConfig = option(BudgetConfig)
    controller: Controller = field(default_factory=free_form)
    guard: GuardConfig = option(GuardConfig)
    prompt: PromptConfig = option(PromptConfig)
    decoding: DecodingConfig = option(DecodingConfig)
    signals: Signals = option(
        Signals.light,
        "what is recorded of every token: off, light (log-prob of the chosen token, entropy) or "
        "full (what the guard learns from)",
    )
    measure: Measure = option(
        Measure.quality,
        "quality: answers, shared and batched; latency: requests alone, at batch 1; both: these "
        "two; fidelity: KL and top-1 agreement with the full cache along its own answer; "
        "quality_fidelity; latency_fidelity; or all",
        neutral=True,
        sweeps=True,
    )
    latency: LatencyConfig = option(LatencyConfig, neutral=True)
    fidelity: FidelityConfig = option(FidelityConfig, neutral=True)
    run: RunConfig = option(RunConfig, neutral=True)
    score: ScoreConfig = option(ScoreConfig, neutral=True)
    analyze: AnalyzeConfig = option(AnalyzeConfig, neutral=True)
    plan: PlanConfig = option(PlanConfig, neutral=True)
    status: StatusConfig = option(StatusConfig, neutral=True)
    report: ReportConfig = option(ReportConfig, neutral=True)
    simulate: SimulateConfig = option(SimulateConfig, neutral=True)
    certify: CertifyConfig = option(CertifyConfig, neutral=True)
    compare: CompareConfig = option(CompareConfig, neutral=True)
    export: ExportConfig = option(ExportConfig, neutral=True)
    certificate: str | None = option(
        None, "of kvx.serve budget=certified: a JSON file of kvx.certify", neutral=True
    )
    serve: ServeConfig = option(ServeConfig, neutral=True)
    train: TrainConfig = option(TrainConfig, neutral=True)
    verify: VerifyConfig = option(VerifyConfig, neutral=True)
    paths: PathsConfig = option(PathsConfig, neutral=True)


def _from_environment(name: str, otherwise: str | None = None) -> str | None:
    from kvx.config import environment

    return environment.read(name) or otherwise


def register() -> None:
    """Make the schema and the resolvers known to Hydra; safe to call more than once.

    All names begin with `kvx_`: the store and the resolvers are shared with a user's own code.
    """
    store = ConfigStore.instance()
    store.store(name="kvx_schema", node=Config)
    store.store(group="kvx_schema/engine", name="openai", node=OpenAIConfig)
    OmegaConf.register_new_resolver("kvx_cache", lambda: str(cache_dir()), replace=True)
    OmegaConf.register_new_resolver("kvx_package", lambda: str(package_dir()), replace=True)
    OmegaConf.register_new_resolver("kvx_env", _from_environment, replace=True)


@contextlib.contextmanager
def shared_store() -> Iterator[None]:
    """While kvx composes: Hydra's store is not copied, and tasks are laid over their datasets.

    Hydra copies all of it for every composition and for every group that --help lists. It also
    copies each node it hands out, so sharing it is safe, and halves the start-up time.
    """
    with tasks_laid_over():
        if "__deepcopy__" in vars(ConfigStore):  # within another composition, or the user's own
            yield
            return
        ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
        try:
            yield
        finally:
            del ConfigStore.__deepcopy__  # type: ignore[attr-defined]


register()
