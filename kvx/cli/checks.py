"""What a schema cannot say: combinations and ranges, checked before anything is started."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import date

from kvx.config import conditions, ranges
from kvx.config.engine import OpenAIConfig
from kvx.config.folder_names import check_names
from kvx.config.numbers import exact
from kvx.config.schema import (
    BudgetConfig,
    BudgetKind,
    Config,
    ModelConfig,
    PressNeed,
    PromptConfig,
    TemplateConfig,
)
from kvx.data import binning
from kvx.data.chat import RESERVED
from kvx.errors import UserError
from kvx.guard import controller
from kvx.guard.live_checks import check_guard

DTYPES = ("auto", "float32", "bfloat16", "float16")


def check(config: Config, points: bool = True) -> None:
    """Raises `UserError` naming the field for a request that cannot be right."""
    if points:
        _check_budget(config)
        _check_press(config)
    ranges.check(config)
    _check_template(config.dataset.template)
    _check_until("decoding.until", config.decoding.until)
    _check_prompt(config.prompt)
    binning.check(config.dataset.binning, config.dataset.sampling)
    _check_scoring(config)
    controller.check(config.controller)
    check_guard(config.guard)
    if isinstance(config.engine, OpenAIConfig):
        from kvx.engines.openai import checks

        checks.check(config.engine, config.measure)
    _check_devices(config.model)
    if config.model.dtype not in DTYPES:
        raise UserError(f"model.dtype={config.model.dtype}: use one of {', '.join(DTYPES)}")
    check_names(config)


def refuse_certificate(config: Config) -> None:
    """Raises `UserError` where a certificate has no use: a run measures budgets of its own."""
    if config.budget.kind is BudgetKind.certified or config.certificate is not None:
        asked = "budget=certified" if config.certificate is None else "certificate"
        raise UserError(
            f"{asked}: only kvx.serve takes a certificate; give a run numbers, such as "
            "budget=1.0,0.5"
        )


def wants_less_of_the_full_cache(config: Config) -> bool:
    """`press=none` at a budget it cannot keep."""
    kind, ratio = config.budget.kind, config.budget.ratio
    kept_all = kind is BudgetKind.ratio and ratio == 1.0
    # what a certificate says of its press is kvx.serve's business
    return config.press.method is None and not kept_all and kind is not BudgetKind.certified


def _check_until(field: str, until: list[str]) -> None:
    if "" in until:
        raise UserError(f"{field}: holds an empty text, at which every answer would end")


def _check_template(template: TemplateConfig) -> None:
    for part in ("context", "question"):
        if f"{{{part}}}" not in getattr(template, part):
            raise UserError(f"dataset.template.{part}: must hold {{{part}}}, or it is never asked")


def _check_devices(model: ModelConfig) -> None:
    given = model.device_map
    if given is None:
        return
    if model.device != "auto":
        raise UserError(
            f"model.device={model.device}: model.device_map says where; set one of them"
        )
    if not isinstance(given, str | Mapping) or not given:
        raise UserError(
            f"model.device_map={given}: use auto, balanced, or a mapping of the model's parts to "
            "devices, such as {model: 0, lm_head: 1}"
        )


def _check_prompt(prompt: PromptConfig) -> None:
    told = prompt.date
    if not isinstance(prompt.template_kwargs, Mapping | None):
        raise UserError(
            f"prompt.template_kwargs={prompt.template_kwargs}: use a mapping, such as "
            "{enable_thinking: true}"
        )
    if reserved := [name for name in prompt.template_kwargs or {} if name in RESERVED]:
        raise UserError(
            f"prompt.template_kwargs.{reserved[0]}: is not for a template to be told; kvx sets it"
        )
    try:
        if told is not None and date.fromisoformat(told).isoformat() != told:
            raise ValueError
    except ValueError:
        raise UserError(f"prompt.date={told}: write a day as 2026-01-31, or null") from None


def _check_scoring(config: Config) -> None:
    from kvx.scoring.failure_rules import ANY, check_format
    from kvx.scoring.metrics import resolve

    if not config.dataset.metrics:
        raise UserError("dataset.metrics: name at least one metric")
    resolve(config.dataset.metrics)
    resolve(config.score.metrics or [], "score.metrics")
    check_format(config.dataset.answer_format)
    if config.score.answer_format != ANY:
        check_format(config.score.answer_format, "score.answer_format")
    _check_until("dataset.until", config.dataset.until)
    _check_until("score.until", config.score.until or [])


def full_cache(config: Config) -> Config:
    """The same point with everything kept."""
    return replace(config, budget=BudgetConfig())


def _check_budget(config: Config) -> None:
    budget = config.budget
    if budget.kind is BudgetKind.ratio and not 0 < budget.ratio <= 1:
        raise UserError(
            f"budget={exact(budget.ratio)}: must be above 0 and at most 1, "
            "the fraction of the prompt's KV kept"
        )
    if budget.kind is BudgetKind.tokens and (budget.tokens is None or budget.tokens < 1):
        raise UserError(f"budget.tokens={budget.tokens}: must be at least 1")


def _check_press(config: Config) -> None:
    press, budget = config.press, config.budget
    full = budget.kind is BudgetKind.ratio and budget.ratio == 1.0
    if wants_less_of_the_full_cache(config):
        raise UserError(
            f"press={press.name}: keeps the full cache; use budget=1.0 or another press"
        )
    if press.method is not None and "_target_" not in press.method:
        raise UserError(f"press={press.name}: press.method needs a _target_, the press's class")
    if press.method is not None and "compression_ratio" in press.method:
        raise UserError(f"press={press.name}: set budget, not press.method.compression_ratio")
    conditions.check(press)
    wants_eager = (
        PressNeed.attention_weights in press.needs and press.method is not None and not full
    )
    if wants_eager and config.model.attn_implementation not in ("auto", "eager"):
        raise UserError(
            f"press={press.name}: needs attention weights; "
            "set model.attn_implementation=eager or auto"
        )
