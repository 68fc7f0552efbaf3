"""Structured configuration of a dataset: its source, its prompts and which of them are asked."""

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from typing import Any

from omegaconf import MISSING

from kvx.config.fields import Check, option
from kvx.config.folder_names import folder_name


class Overflow(Enum):
    """How to treat a context that does not fit the model."""

    error = "error"
    truncate_middle = "truncate_middle"
    truncate_head = "truncate_head"
    truncate_prompt = "truncate_prompt"  # LongBench's: the middle of context and wording together


class BinUnit(Enum):
    """What bins are cut by."""

    tokens = "tokens"  # of the context
    words = "words"  # the row's own `length`, as LongBench-E counts


class BinStrategy(Enum):
    quantile = "quantile"
    edges = "edges"


class SampleStrategy(Enum):
    uniform = "uniform"
    focus_transition = "focus_transition"
    pinned = "pinned"


def stops(until: list[str]) -> str | None:
    return ": holds an empty text, at which every answer would end" if "" in until else None


def _holding(part: str) -> Check:
    def check(template: str) -> str | None:
        return None if part in template else f": must hold {part}, or it is never asked"

    return check


def ascending(edges: list[int]) -> str | None:
    if len(edges) >= 2 and all(a < b for a, b in pairwise(edges)) and edges[0] >= 0:
        return None
    return f"={edges}: give at least two ascending token counts, from 0 on"


def _at_least_one_metric(metrics: list[str]) -> str | None:
    return None if metrics else ": name at least one metric"


@dataclass
class BinningConfig:
    strategy: BinStrategy = option(BinStrategy.quantile, "how bins of prompt lengths are cut")
    n_bins: int = option(5, "of strategy=quantile", at_least=1)
    edges: list[int] | None = option(
        None, "of strategy=edges: ascending counts of the unit", at_least=0, check=ascending
    )
    unit: BinUnit = option(
        BinUnit.tokens, "what edges count: tokens, or the rows' own length in words", added=True
    )


@dataclass
class SamplingConfig:
    strategy: SampleStrategy = option(SampleStrategy.uniform, "how examples are chosen in bins")
    n_per_bin: int = option(
        10, "examples of each bin; 0 beside pinned_ids", at_least=0, words="at least 1"
    )
    whole_clusters: bool = option(
        False,
        "n_per_bin counts clusters (documents), and all questions of each are asked",
        added=True,
    )
    focus_bins: list[int] = option(
        [], "of strategy=focus_transition: bins with focus_n_per_bin examples", at_least=0
    )
    focus_n_per_bin: int = option(0, "examples of each focus bin", at_least=0)
    pinned_ids: list[str] = option([], "of strategy=pinned: the examples")
    unseen_by: str | None = option(
        None,
        "leave out what a hazard model was made with: default (the packaged one), or its folder",
        derived=True,
    )
    seed: int = option(0, "seed of the choice")


@dataclass
class TemplateConfig:
    r"""How an example becomes text. The context part is what a question-agnostic press sees.

    `\n` and `\t` typed as two characters (on a command line, in YAML's single quotes) are a line
    break and a tab; `\\` is a backslash (`kvx.config.escapes`).
    """

    context: str = option("{context}", "what is compressed", check=_holding("{context}"))
    question: str = option("{question}", "what comes after it", check=_holding("{question}"))
    answer_prefix: str = option("", "beginning of the answer, written for the model")
    chat: bool = option(True, "false: never in a chat template, whatever the model has", added=True)
    separator: str = option(
        "\n", "between question and answer_prefix where there is no chat template", added=True
    )


@dataclass
class DatasetConfig:
    name: str = option(MISSING, "name of the dataset in tables and folders", check=folder_name)
    task: str = option(
        MISSING, "name of its task; all: every task of the dataset, as a sweep", check=folder_name
    )
    tasks: dict[str, Any] = option(
        dict,
        "the dataset's tasks: in its file, what each lays over the other fields; null: none of it",
        neutral=True,
    )
    length: int | None = option(
        None,
        "tokens of a prompt and its answer, where the source generates to a length",
        added=True,
        at_least=1,
    )
    category: str | None = option(
        None,
        "the group of the benchmark's tasks that this one counts in, whose means are averaged too",
        added=True,
        label=True,
    )
    source: dict[str, Any] = option(dict, "the source's class (_target_) and its arguments")
    template: TemplateConfig = option(TemplateConfig)
    binning: BinningConfig = option(BinningConfig)
    sampling: SamplingConfig = option(SamplingConfig)
    overflow: Overflow = option(
        Overflow.error, "what to do with a context that does not fit the model"
    )
    max_prompt_tokens: int | None = option(
        None,
        "of overflow=truncate_prompt: tokens that are left of a longer prompt, before the chat "
        "template; null: as many as fit",
        added=True,
        at_least=2,
    )
    metrics: list[str] = option(
        ["exact_match"],
        "metrics of an answer; the first is the primary one",
        scoring=True,
        check=_at_least_one_metric,
    )
    answer_format: str | None = option(
        None, "number, json or yes_no, without which an answer failed; null: any text", scoring=True
    )
    max_new_tokens: int = option(
        64, "tokens of an answer at most", taken_over="decoding.max_new_tokens", at_least=1
    )
    until: list[str] = option(
        [],
        "stop strings: the text ends before the first of them",
        added=True,
        taken_over="decoding.until",
        check=stops,
    )
