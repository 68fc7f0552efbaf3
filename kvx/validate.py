"""What a schema cannot say: combinations and ranges, checked before anything is started."""

from dataclasses import replace

from kvx.config import (
    BudgetConfig,
    BudgetKind,
    Config,
    DecodingConfig,
    LatencyConfig,
    OpenAIConfig,
    PressNeed,
    TemplateConfig,
)
from kvx.errors import UserError
from kvx.folder_names import check_names
from kvx.guard import controller
from kvx.live_rules import check_guard

DTYPES = ("auto", "float32", "bfloat16", "float16")


def check(config: Config, points: bool = True) -> None:
    """Raises `UserError` naming the field for a request that cannot be right."""
    if points:
        _check_budget(config)
        _check_press(config)
    _check_decoding(config.decoding)
    _check_latency(config.latency)
    _check_template(config.dataset.template)
    _check_scoring(config)
    controller.check(config.controller)
    check_guard(config.guard)
    if isinstance(config.engine, OpenAIConfig):
        from kvx.engines.openai import fields

        fields.check(config.engine, config.measure)
    if config.model.dtype not in DTYPES:
        raise UserError(f"model.dtype={config.model.dtype}: use one of {', '.join(DTYPES)}")
    if not 0 < config.analyze.confidence < 1:
        raise UserError(f"analyze.confidence={config.analyze.confidence}: must be between 0 and 1")
    if config.analyze.n_boot < 100:
        raise UserError(f"analyze.n_boot={config.analyze.n_boot}: must be at least 100")
    check_names(config)


def refuse_certificate(config: Config) -> None:
    """Raises `UserError` where a certificate has no use: a run measures budgets of its own."""
    if config.budget.kind is BudgetKind.certified or config.certificate is not None:
        asked = "budget=certified" if config.certificate is None else "certificate"
        raise UserError(
            f"{asked}: only kvx.serve takes a certificate; give a run numbers, such as "
            "budget=1.0,0.5"
        )


def _check_latency(latency: LatencyConfig) -> None:
    for name, least in (("n_per_bin", 1), ("repeats", 1), ("warmup", 0)):
        if getattr(latency, name) < least:
            raise UserError(f"latency.{name}={getattr(latency, name)}: must be at least {least}")


def wants_less_of_the_full_cache(config: Config) -> bool:
    """`press=none` at a budget it cannot keep."""
    kind, ratio = config.budget.kind, config.budget.ratio
    kept_all = kind is BudgetKind.ratio and ratio == 1.0
    # what a certificate says of its press is kvx.serve's business
    return config.press.method is None and not kept_all and kind is not BudgetKind.certified


def _check_decoding(decoding: DecodingConfig) -> None:
    limits = {
        "temperature": (decoding.temperature >= 0, "0 (greedy) or more"),
        "max_new_tokens": (decoding.max_new_tokens >= 1, "at least 1"),
        "top_p": (0 < decoding.top_p <= 1, "above 0 and at most 1"),
        "top_k": (decoding.top_k >= 0, "0 (all) or more"),
        "timeout_s": (decoding.timeout_s is None or decoding.timeout_s > 0, "above 0, or null"),
    }
    for name, (good, wanted) in limits.items():
        if not good:
            raise UserError(f"decoding.{name}={getattr(decoding, name)}: must be {wanted}")


def _check_template(template: TemplateConfig) -> None:
    for part in ("context", "question"):
        if f"{{{part}}}" not in getattr(template, part):
            raise UserError(f"dataset.template.{part}: must hold {{{part}}}, or it is never asked")


def _check_scoring(config: Config) -> None:
    from kvx.score.failures import check_format
    from kvx.score.metrics import resolve

    if not config.dataset.metrics:
        raise UserError("dataset.metrics: name at least one metric")
    resolve(config.dataset.metrics)
    resolve(config.score.metrics or [])
    check_format(config.dataset.answer_format)


def full_cache(config: Config) -> Config:
    """The same point with everything kept."""
    return replace(config, budget=BudgetConfig())


def _check_budget(config: Config) -> None:
    budget = config.budget
    if budget.kind is BudgetKind.ratio and not 0 < budget.ratio <= 1:
        raise UserError(
            f"budget={budget.ratio:g}: must be above 0 and at most 1, "
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
    wants_eager = (
        PressNeed.attention_weights in press.needs and press.method is not None and not full
    )
    if wants_eager and config.model.attn_implementation not in ("auto", "eager"):
        raise UserError(
            f"press={press.name}: needs attention weights; "
            "set model.attn_implementation=eager or auto"
        )
