"""Combinations and ranges that the schema cannot express, checked before anything starts."""

from dataclasses import replace

from kvx.config import conditions, fields
from kvx.config.dataset import DatasetConfig, Overflow
from kvx.config.engine import OpenAIConfig
from kvx.config.folder_names import check_name
from kvx.config.identity import is_guarded
from kvx.config.measures import Measure
from kvx.config.schema import BudgetConfig, BudgetKind, Config
from kvx.config.tasks import ALL, unknown_task
from kvx.data import binning
from kvx.data.chat import RESERVED
from kvx.errors import UserError, require
from kvx.guard.controllers import base as controllers


def check(config: Config, points: bool = True) -> None:
    """Raises `UserError` naming the field for a request that cannot be right."""
    fields.check(config)
    if points:
        _check_budget(config.budget)
        _check_press(config)
    _check_dataset(config.dataset, points)
    binning.check(config.dataset.binning, config.dataset.sampling)
    _check_scoring(config)
    controllers.check(config.controller)
    check_name("controller.name", config.controller.name)
    if Measure.fidelity in config.measure.parts:
        _check_fidelity(config)
    engine, measure, model = config.engine, config.measure, config.model
    if isinstance(engine, OpenAIConfig):
        if measure is not Measure.quality and not engine.stream:
            raise UserError(f"measure={measure.name}: first-token times need engine.stream=true")
        if points:
            require("openai", "aiolimiter", "tenacity")
    if model.device_map is not None and model.device != "auto":
        raise UserError(f"model.device={model.device}: conflicts with model.device_map; set one")
    if reserved := [name for name in config.prompt.template_kwargs or {} if name in RESERVED]:
        raise UserError(f"prompt.template_kwargs.{reserved[0]}: kvx sets it; leave it out")


def _check_fidelity(config: Config) -> None:
    asked, name = f"measure={config.measure.name}", config.controller.name
    if isinstance(config.engine, OpenAIConfig):
        raise UserError(
            f"{asked}: a server shows no logits along an answer it is given; use engine=kvpress"
        )
    if is_guarded(config):
        raise UserError(
            f"{asked}: every point is fed the full cache's answer, so controller={name} has "
            "nothing to steer; use controller=none"
        )


def refuse_certificate(config: Config) -> None:
    """Raises `UserError` for a certificate: a run measures budgets of its own."""
    if config.budget.kind is BudgetKind.certified or config.certificate is not None:
        asked = "budget=certified" if config.certificate is None else "certificate"
        raise UserError(f"{asked}: only kvx.serve takes a certificate; write e.g. budget=1.0,0.5")


def wants_less_of_the_full_cache(config: Config) -> bool:
    """Whether it is `press=none` at a budget that it cannot keep."""
    budget = config.budget
    # kvx.serve checks the press of a certificate
    open_yet = budget.kind is BudgetKind.certified
    return config.press.method is None and not budget.is_full and not open_yet


def _check_dataset(dataset: DatasetConfig, points: bool) -> None:
    tasks = dataset.tasks
    if given := [name for name, entry in tasks.items() if entry is not None]:
        raise UserError(
            f"dataset.tasks.{given[0]}: is read in the dataset's own file; set the field itself, "
            "as in dataset.max_new_tokens=64"
        )
    if tasks and points and dataset.task == ALL:
        raise UserError(
            f"dataset.task={ALL}: a sweep over {len(tasks)} tasks; add -m, or name one of "
            f"{', '.join(tasks)}"
        )
    if dataset.max_prompt_tokens is not None and dataset.overflow is not Overflow.truncate_prompt:
        raise UserError(
            f"dataset.max_prompt_tokens={dataset.max_prompt_tokens}: is read with "
            "dataset.overflow=truncate_prompt; set that too"
        )
    if tasks and dataset.task not in (*tasks, ALL):
        raise unknown_task(dataset.name, dataset.task, list(tasks))
    if dataset.length is not None and dataset.source.get("length") != dataset.length:
        raise UserError(
            f"dataset.length={dataset.length}: dataset={dataset.name} does not generate to a length"
        )


def _check_scoring(config: Config) -> None:
    from kvx.scoring.failure_rules import ANY, check_format
    from kvx.scoring.metrics import resolve

    asked = resolve(config.dataset.metrics) | resolve(config.score.metrics or [], "score.metrics")
    require(*(name for metric in asked.values() for name in metric.needs))
    check_format(config.dataset.answer_format)
    if config.score.answer_format != ANY:
        check_format(config.score.answer_format, "score.answer_format")


def full_cache(config: Config) -> Config:
    """The same point with everything kept."""
    return replace(config, budget=BudgetConfig())


def _check_budget(budget: BudgetConfig) -> None:
    if budget.kind is BudgetKind.tokens and budget.tokens is None:
        raise UserError("budget.tokens=null: must be at least 1; type budget=256t for short")


def _check_press(config: Config) -> None:
    press = config.press
    if wants_less_of_the_full_cache(config):
        raise UserError(
            f"press={press.name}: keeps the full cache; use budget=1.0 or another press"
        )
    if press.method is not None and "_target_" not in press.method:
        raise UserError(f"press={press.name}: press.method needs a _target_, the press's class")
    if press.method is not None and "compression_ratio" in press.method:
        raise UserError(f"press={press.name}: set budget, not press.method.compression_ratio")
    conditions.check(press)
