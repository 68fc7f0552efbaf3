"""Numbers out of range: every numeric field of the configuration is refused by name."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from kvx.cli.checks import check
from kvx.cli.command import compose
from kvx.config.engine import OpenAIConfig
from kvx.config.schema import Config
from kvx.errors import UserError

# hashed together with a name: any whole number is a seed
ANY = ("seed", "dataset.sampling.seed")


@cache
def base(engine: str) -> Config:
    return compose(f"engine={engine}", "press=snapkv", "budget=0.5")


def numeric(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(config):
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(value := getattr(config, field.name)):
            yield from numeric(value, f"{name}.")
        elif "int" in (text := kind(field)) or "float" in text:
            yield name, text


def kind(field: Any) -> str:
    return field.type.__name__ if isinstance(field.type, type) else str(field.type)


def holding(config: Any, path: str, value: Any) -> Any:
    name, _, rest = path.partition(".")
    inner = holding(getattr(config, name), rest, value) if rest else value
    return replace(config, **{name: inner})


FIELDS = sorted(
    {(n, t) for e in ("kvpress", "openai") for n, t in numeric(base(e)) if "Point" not in t}
)


@pytest.mark.parametrize(("path", "text"), [f for f in FIELDS if f[0] not in ANY])
def test_every_number_has_a_range(path: str, text: str) -> None:
    own = {f.name for f in dataclasses.fields(OpenAIConfig)}
    section, _, name = path.partition(".")
    config = base("openai" if section == "engine" and name.partition(".")[0] in own else "kvpress")
    if path == "budget.tokens":
        config = compose("press=snapkv", "budget=64t")
    for wrong in (-7, math.nan, math.inf) if "float" in text else (-7,):
        with pytest.raises(UserError) as refused:
            check(holding(config, path, [wrong] if "list" in text else wrong))
        assert str(refused.value).startswith((f"{path}=", f"{section}={wrong:g}")), refused.value
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("analyze.seed=-1", "analyze.seed=-1: must be 0 or more"),
        ("analyze.transition_drop=0", "analyze.transition_drop=0: must be above 0"),
        ("analyze.failure_jump=-1", "analyze.failure_jump=-1: must be above 0"),
        ("analyze.baseline_floor=1.5", "analyze.baseline_floor=1.5: must be between 0 and 1"),
        ("dataset.sampling.n_per_bin=0", "dataset.sampling.n_per_bin=0: must be at least 1"),
        ("engine.max_cache_gib=-1", "engine.max_cache_gib=-1: must be above 0, or null"),
        ("run.shard_requests=0", "run.shard_requests=0: must be at least 1"),
        ("decoding.temperature=nan", "decoding.temperature=nan: must be 0 (greedy) or more"),
        ("train.eta=2", "train.eta=2: must be above 0 and at most 1"),
    ],
)
def test_a_number_out_of_range_is_one_line(typed: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        compose(typed)
    assert says in str(refused.value)
