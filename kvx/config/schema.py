"""Structured configuration: the schema of `conf/` and of the command line.

Every field given in either is checked against it. Fields marked `neutral()` cannot change a point's
results and are left out of its id (`kvx.config.field_kinds`, `kvx.points`). This module imports no
torch, so that `--help` and `--cfg job` stay fast.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from kvx.config.certify import CertifyConfig
from kvx.config.controller import ControllerConfig, GuardConfig, SimulateConfig
from kvx.config.engine import EngineConfig, OpenAIConfig
from kvx.config.field_kinds import ADDED, NEUTRAL, RECORDED, added, neutral
from kvx.config.folders import cache_dir, package_dir
from kvx.config.ranges import within
from kvx.config.serve import ServeConfig
from kvx.config.train import TrainConfig, VerifyConfig

# environment variables: how many workers share this machine's memory, and their GPU's
SHARING = "KVX_WORKERS_HERE"
SHARING_GPU = "KVX_WORKERS_ON_GPU"


class BudgetKind(Enum):
    ratio = "ratio"
    tokens = "tokens"
    certified = "certified"  # what a certificate allows; kvx.serve puts one of the others in place


class PressNeed(Enum):
    """What a press asks of the engine beyond scoring and dropping entries after each layer.

    Presses that only change what stays in the cache share one prefill; the others prefill alone. A
    press must not write into the keys and values it is given: other points read them too.
    """

    attention_weights = "attention_weights"  # eager attention, which returns them
    changes_forward = "changes_forward"  # what later layers compute is not the full cache's
    masks = "masks"  # entries are hidden from attention, not dropped
    uneven_layers = "uneven_layers"  # layers keep different numbers of entries
    query_in_prompt = "query_in_prompt"  # the question must be in what is compressed


class Keeps(Enum):
    """How many entries a press keeps of those that a budget asks for."""

    asked = "asked"  # as many, but for rounding; a point that keeps another number fails
    by_method = "by_method"  # another number, by its method: the point is told by what it kept


class Measure(Enum):
    """Answers from shared, batched work, or latencies of requests that run alone."""

    quality = "quality"
    latency = "latency"
    both = "both"


class Overflow(Enum):
    """What to do with a context that does not fit the model."""

    error = "error"
    truncate_middle = "truncate_middle"
    truncate_head = "truncate_head"


class BinStrategy(Enum):
    quantile = "quantile"
    edges = "edges"


class Reasoning(Enum):
    """Whether what a model thought before its answer is scored too."""

    strip = "strip"
    keep = "keep"


class SampleStrategy(Enum):
    uniform = "uniform"
    focus_transition = "focus_transition"
    pinned = "pinned"


class Signals(Enum):
    """What is recorded of every generated token."""

    off = "off"
    light = "light"  # log-prob and entropy of the chosen token
    full = "full"  # what the guard learns from, and the probe of every prompt


@dataclass
class Degenerate:
    """At which prompts and budgets a press is not what its name says, and what it is instead.

    `when` is an expression over `prompt_tokens`, `kept`, `asked` (`kept` before rounding) and the
    arguments in the press's `method` (see `kvx.config.conditions`).
    """

    when: str = MISSING
    reason: str = neutral(MISSING)


@dataclass
class PressConfig:
    """A compression method. `method` holds its `_target_` and arguments; null is the full cache."""

    name: str = MISSING
    method: dict[str, Any] | None = None
    needs: list[PressNeed] = field(default_factory=list)
    # whether the scores of the entries depend on how many are kept; if not, budgets share them
    score_uses_budget: bool = True
    # at or below this many kept entries the press cannot do what it is meant to: a degenerate point
    degenerate_at_tokens: int = within(0, at_least=0)
    # prompts must be longer than this, or the press refuses them
    min_prompt_tokens: int = within(0, at_least=0)
    # how far the measured number of kept entries may be from the asked one. Beyond a rounding of 1
    # the point is told by what it kept
    tolerance_tokens: int = within(1, at_least=0)
    keeps: Keeps = added(Keeps.asked)
    # when else a point is degenerate, request by request
    degenerate_when: list[Degenerate] = added([])


@dataclass
class BudgetConfig:
    """How many of the prompt's KV entries are kept.

    A fraction of them (`ratio`, 1.0 = full cache) or a number (`tokens`).
    """

    kind: BudgetKind = BudgetKind.ratio
    ratio: float = 1.0
    tokens: int | None = None


@dataclass
class ModelConfig:
    """A transformers model: a hub id or a local directory."""

    name: str = MISSING
    path: str = neutral(MISSING)
    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    attn_implementation: str = "auto"
    max_context_tokens: int | None = within(None, at_least=1)
    chat_template: bool = True
    # several devices for one model, as accelerate names them: auto, balanced, or a mapping
    device_map: Any = field(default=None, metadata={**NEUTRAL, RECORDED: True, ADDED: True})
    # run Python files that lie in the model's folder
    trust_remote_code: bool = added(False)


@dataclass
class BinningConfig:
    strategy: BinStrategy = BinStrategy.quantile
    n_bins: int = within(5, at_least=1)
    edges: list[int] | None = within(None, at_least=0)


@dataclass
class SamplingConfig:
    strategy: SampleStrategy = SampleStrategy.uniform
    n_per_bin: int = within(10, at_least=0, words="at least 1")  # 0: beside pinned ids
    focus_bins: list[int] = within([], at_least=0)
    focus_n_per_bin: int = within(0, at_least=0)
    pinned_ids: list[str] = field(default_factory=list)
    # leave out what a hazard model was made with: `default` (the packaged one), or its folder
    unseen_by: str | None = None
    seed: int = 0


@dataclass
class TemplateConfig:
    r"""How an example becomes text. The context part is what a question-agnostic press sees.

    `\n` and `\t` typed as two characters (on a command line, in YAML's single quotes) are a line
    break and a tab; `\\` is a backslash (`kvx.config.escapes`).
    """

    context: str = "{context}"
    question: str = "{question}"
    answer_prefix: str = ""


@dataclass
class DatasetConfig:
    name: str = MISSING
    task: str = MISSING
    source: dict[str, Any] = field(default_factory=dict)
    template: TemplateConfig = field(default_factory=TemplateConfig)
    binning: BinningConfig = field(default_factory=BinningConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    overflow: Overflow = Overflow.error
    metrics: list[str] = field(default_factory=lambda: ["exact_match"])
    answer_format: str | None = None
    max_new_tokens: int = within(64, at_least=1)
    # stop strings: an answer ends before the first of them; `decoding.until` takes them over
    until: list[str] = added([])


@dataclass
class PromptConfig:
    """`date` (YYYY-MM-DD) is what a chat template is told that asks for the day.

    Null: the day the manifest was made; of kvx.serve, today. The manifest's own is part of its
    points' ids. `system` is a system message before the user's, `template_kwargs` are handed to the
    chat template, such as {enable_thinking: true}; without one neither is taken.
    """

    query_aware: bool = False
    date: str | None = neutral(None)
    system: str | None = added(None)
    template_kwargs: Any = added(None)  # a mapping; Any, since Hydra merges none into null


@dataclass
class DecodingConfig:
    """Greedy at temperature 0, else seeded sampling."""

    max_new_tokens: int = within(64, at_least=1)
    temperature: float = within(0.0, at_least=0, words="0 (greedy) or more")
    top_p: float = within(1.0, above=0, at_most=1)
    top_k: int = within(0, at_least=0, words="0 (all) or more")
    timeout_s: float | None = within(None, above=0)
    # stop strings; the text ends before the first of them
    until: list[str] = added([])


@dataclass
class RunConfig:
    shard_requests: int = within(8, at_least=1)
    shard_s: float = within(20.0, at_least=0)
    progress: bool = True
    retry_failed: bool = False


@dataclass
class LatencyConfig:
    """Requests that are measured alone, at batch 1: `n_per_bin` examples, each `repeats` times."""

    n_per_bin: int = within(2, at_least=1)
    warmup: int = within(1, at_least=0)
    repeats: int = within(3, at_least=1)


@dataclass
class ScoreConfig:
    """`metrics`, `answer_format` and `until` replace what the points were run with."""

    metrics: list[str] | None = None
    answer_format: str | None = None  # `any`: none is asked for
    until: list[str] | None = None
    reasoning: Reasoning = Reasoning.strip


@dataclass
class AnalyzeConfig:
    confidence: float = within(0.95, above=0, below=1)
    n_boot: int = within(10_000, at_least=100)
    seed: int = within(0, at_least=0)
    transition_drop: float = within(0.15, above=0)
    spread_jump: float = within(0.10, above=0)
    failure_jump: float = within(0.10, above=0)
    baseline_floor: float = within(0.20, at_least=0, at_most=1)


class PlanFormat(Enum):
    text = "text"
    json = "json"


@dataclass
class PlanConfig:
    """`calibrate` loads the model and measures one short prompt."""

    calibrate: bool = False
    format: PlanFormat = PlanFormat.text


@dataclass
class StatusConfig:
    """`points` lists every point instead of one line per press."""

    points: bool = False


@dataclass
class PathsConfig:
    output: str = "outputs"
    multirun: str = "multirun"
    cache: str = MISSING


@dataclass
class Config:
    """Everything one point needs. One object a point travels through every stage."""

    experiment_name: str = "default"
    seed: int = 0
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    press: PressConfig = field(default_factory=PressConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    decoding: DecodingConfig = field(default_factory=DecodingConfig)
    signals: Signals = Signals.light
    measure: Measure = field(default=Measure.quality, metadata=NEUTRAL)
    latency: LatencyConfig = field(default_factory=LatencyConfig, metadata=NEUTRAL)
    run: RunConfig = field(default_factory=RunConfig, metadata=NEUTRAL)
    score: ScoreConfig = field(default_factory=ScoreConfig, metadata=NEUTRAL)
    analyze: AnalyzeConfig = field(default_factory=AnalyzeConfig, metadata=NEUTRAL)
    plan: PlanConfig = field(default_factory=PlanConfig, metadata=NEUTRAL)
    status: StatusConfig = field(default_factory=StatusConfig, metadata=NEUTRAL)
    simulate: SimulateConfig = field(default_factory=SimulateConfig, metadata=NEUTRAL)
    certify: CertifyConfig = field(default_factory=CertifyConfig, metadata=NEUTRAL)
    certificate: str | None = neutral(None)
    serve: ServeConfig = field(default_factory=ServeConfig, metadata=NEUTRAL)
    train: TrainConfig = field(default_factory=TrainConfig, metadata=NEUTRAL)
    verify: VerifyConfig = field(default_factory=VerifyConfig, metadata=NEUTRAL)
    paths: PathsConfig = field(default_factory=PathsConfig, metadata=NEUTRAL)


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
    """While kvx composes: Hydra's store is not copied.

    Hydra copies all of it for every composition and for every group that --help lists. It also
    copies each node it hands out, so sharing it is safe, and halves the start-up time.
    """
    if "__deepcopy__" in vars(ConfigStore):  # within another composition, or the user's own
        yield
        return
    ConfigStore.__deepcopy__ = lambda self, memo: self  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del ConfigStore.__deepcopy__  # type: ignore[attr-defined]


register()
