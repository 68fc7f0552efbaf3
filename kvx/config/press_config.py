"""What is known of a press: its class, and what kvx has to know to run it and to tell of it."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from kvx.config.fields import free_form, option
from kvx.config.folder_names import folder_name
from kvx.config.model_features import ModelFeature
from kvx.config.press_choices import Keeps, PressLayers, PressNeed, Queries


@dataclass
class Degenerate:
    """The prompts and budgets at which a press acts as another method, and which one."""

    when: str = option(
        MISSING,
        "an expression over prompt_tokens, kept, asked (kept before rounding) and the arguments in "
        "the press's method (see kvx.config.conditions)",
    )
    reason: str = option(MISSING, "what the press is then", neutral=True)


@dataclass
class HubFile:
    """A file that a press's class loads for a model: `owner/repository:file` at the hub, or a URL.

    In `file`, `{model}` is the last part of the model's name, `{llama}` the same with Llama for
    Meta-Llama, `{path}` the whole name with _ for /. The press's arguments can stand there too.
    """

    file: str = option(MISSING, "owner/repository:file at the hub, or a URL", neutral=True)
    models: list[str] = option(
        [], "the models that there is one for; empty: the file's name tells", neutral=True
    )
    unless: str = option("", "an argument of the press that names another file", neutral=True)


@dataclass
class PressConfig:
    """A compression method."""

    name: str = option(MISSING, "name of the press in tables and folders", check=folder_name)
    method: dict[str, Any] | None = option(
        None, "the press's class (_target_) and its arguments; null: the full cache"
    )
    summary: str = option("", "what it keeps, in one line", neutral=True)
    paper: str = option("", "address of the paper that it comes from", neutral=True)
    hub: list[HubFile] = option(
        [], "files that its class loads, from the hub or another address", neutral=True
    )
    saves_memory: bool = option(
        True,
        "whether what it drops leaves the memory; one that needs masks never does",
        neutral=True,
    )
    refused: str | None = option(None, "why kvx cannot run it", neutral=True)
    budget_sets: dict[str, str] | None = option(
        None,
        "of a press without a compression_ratio: its arguments by name, each an expression over "
        "budget",
        added=True,
    )
    budget_above: float = option(
        0.0, "the share that it cannot go below; budgets must be above it", at_least=0, neutral=True
    )
    needs: list[PressNeed] = option([], "what it asks of the engine beyond scoring and dropping")
    requires: list[ModelFeature] = option(
        [],
        "what it reads of a model that not every model has; where one is missing, its points are "
        "not applicable",
        neutral=True,
    )
    score_uses_budget: bool = option(
        True,
        "whether the scores of the entries depend on how many are kept; if not, budgets share them",
    )
    degenerate_at_tokens: int = option(
        0,
        "at or below this many kept entries the press cannot do what it is meant to: a degenerate "
        "point",
        at_least=0,
    )
    min_prompt_tokens: int = option(
        0, "prompts must be longer than this, or the press refuses them", at_least=0
    )
    tolerance_tokens: int = option(
        1,
        "how far the measured number of kept entries may be from the asked one; beyond a rounding "
        "of 1 the point is named by what it kept",
        at_least=0,
    )
    keeps: Keeps = option(
        Keeps.asked, "how many entries it keeps of those that a budget asks for", added=True
    )
    degenerate_when: list[Degenerate] = option(
        [], "when else a point is degenerate, request by request", added=True
    )
    layers: PressLayers = option(
        PressLayers.full,
        "which layers it compresses: those of full attention, or those with a window too",
        added=True,
    )
    queries: Queries = option(
        Queries.model,
        "whose queries it ranks by: the model's own, or those that kvpress recomputes, which on "
        "some families are others (docs/queries.md)",
        added=True,
    )
    # kvx.config.inner_press puts what it names into the other fields
    inner: dict[str, Any] = option(
        free_form,
        "the press that this one works on, by its name in this group, as press.inner=snapkv; its "
        "arguments as press.inner.window_size=16",
        added=True,
    )
