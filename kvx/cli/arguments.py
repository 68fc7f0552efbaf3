"""Prepare a command line before Hydra reads it."""

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import ChoiceSweep

from kvx.cli.stages import GROUPS, STAGES
from kvx.config.budgets import with_budgets
from kvx.config.overrides import parse, quoted, readable, several
from kvx.config.tasks import ALL
from kvx.config.tasks import KEY as TASK
from kvx.errors import UserError

MULTIRUN = ("-m", "--multirun")
VALUED = ("--config-dir", "-cd", "--config-path", "-cp")  # options that a value follows
WORKERS = ("hydra/launcher=kvx_local", "hydra/launcher=kvx_slurm")
# press.inner=snapkv, beside which press.inner.window_size=16 has to fit
INNER = re.compile(r"^(\+{0,2}press(?:\.inner)+)=")
# a stage's own sections: an experiment or a server has one of each, whatever is swept
SECTIONS = tuple(s.name for s in STAGES.values() if s.name in s.reads and s.name != "run")


def understood(argv: list[str]) -> list[str]:
    """Arguments with values quoted where Hydra's grammar needs it, and budgets as numbers.

    Flags come first in the result: argparse does not take them between overrides. Raises
    `UserError` for a list where one option of a group is meant.
    """
    rewritten = with_budgets([INNER.sub(r"\1.name=", readable(a)) for a in argv])
    for argument in rewritten:
        _refuse_unnamed(argument)
    multirun = [a for a in rewritten if a in MULTIRUN]
    return _options_last(multirun + [a for a in rewritten if a not in MULTIRUN])


def named(fields: Sequence[str], argv: list[str]) -> list[str]:
    """Arguments without a name, given theirs: of `fields`, in their order.

    An argument is one without `=`, or an existing file; what follows an option is the option's.
    Raises `UserError` for more of them than fields.
    """
    left, rewritten = list(fields), []
    for before, argument in zip(["", *argv], argv, strict=False):
        is_value = before in VALUED or argument.startswith("-")
        if not fields or is_value or ("=" in argument and not Path(argument).exists()):
            rewritten.append(argument)
            continue
        if not left:
            raise UserError(f"{argument}: one too many; this stage takes {len(fields)} names")
        rewritten.append(f"{left.pop(0)}={quoted(argument)}")
    return rewritten


def _options_last(argv: list[str]) -> list[str]:
    """Overrides before options: argparse refuses overrides on both sides of `--cfg job`."""
    options: list[str] = []
    overrides: list[str] = []
    for before, argument in zip(["", *argv], argv, strict=False):
        is_value = before in VALUED
        is_override = "=" in argument and not argument.startswith("-") and not is_value
        (overrides if is_override else options).append(argument)
    return [*overrides, *options] if overrides else options


def _refuse_unnamed(argument: str) -> None:
    """Raises `UserError` for `press=[knorm,snapkv]`, of which Hydra would take the last option.

    A list inside a sweep is refused too, and so is a number, because options have names.
    """
    override = parse(argument)
    if override is None or override.key_or_group.lstrip("/") not in GROUPS:
        return
    value = override.value()
    options = value.list if isinstance(value, ChoiceSweep) else [value]
    if any(isinstance(option, list) for option in options):
        flat = [o for option in options for o in (option if isinstance(option, list) else [option])]
        listed = ",".join(map(str, flat))
        group = override.key_or_group
        raise UserError(f"{argument}: {group} takes one option; to sweep, type -m {group}={listed}")
    if any(isinstance(option, int | float) for option in options):
        raise UserError(f"{argument}: options have names; --help lists those of each group")


def refuse_sweeps(name: str, argv: list[str]) -> None:
    """Raises `UserError` for a sweep where only one value would be used."""
    for argument in argv:
        override = parse(readable(argument))
        if override is None or not override.is_sweep_override() or not several(override):
            continue
        key = override.key_or_group
        section = key.partition(".")[0]
        if name == "serve" and section in ("press", "budget"):
            raise UserError(
                f"{argument}: a server has one {section} of its own; give one value, requests may "
                "name others"
            )
        if name == "serve":
            raise UserError(f"{argument}: several values; a server takes one")
        if section in SECTIONS:
            raise UserError(f"{argument}: several values; {section}.* takes one, even with -m")
        from kvx.config.distinct import undistinguished, why_dropped  # slow: imports identities

        if undistinguished(key):
            raise UserError(f"{argument}: {why_dropped(key)}")


def with_multirun(argv: list[str]) -> list[str]:
    """Add `-m` where several tasks or lengths are asked for, or a launcher with workers.

    Hydra starts such a launcher for sweeps only.
    """
    if any(a.startswith(("-", "hydra.mode=")) for a in argv):
        return argv
    asked = any(a in WORKERS or _sweeps_tasks(a) for a in argv)
    return ["-m", *argv] if asked else argv


def _sweeps_tasks(argument: str) -> bool:
    key = argument.partition("=")[0].lstrip("+")
    if key not in (TASK, "dataset.length") or (override := parse(argument)) is None:
        return False
    return override.is_sweep_override() or (key == TASK and override.value() == ALL)


def after_options(argv: list[str]) -> list[str]:
    """Set a field of a swept group after the group's option is chosen.

    With `press=snapkv,pyramidkv press.method.window_size=32`, Hydra would set the field before a
    press has it. As a sweep of one value it is set for each point.
    """
    overrides = {a: o for a in argv if (o := parse(a)) is not None}
    swept = {o.key_or_group for o in overrides.values() if o.is_sweep_override()}
    rewritten = []
    for argument in argv:
        override = overrides.get(argument)
        if override is not None and not override.is_sweep_override() and override.value() != "":
            group, _, field = override.key_or_group.partition(".")
            if field and group in swept:
                key, _, value = argument.partition("=")
                argument = f"{key}=choice({value})"
        rewritten.append(argument)
    return rewritten


def drop_sweeps(argv: list[str]) -> list[str]:
    """The arguments of `run` without their sweep: no `-m`, and the first of several values."""
    kept = ["hydra.mode=RUN"]
    for argument in understood([a for a in argv if a not in MULTIRUN]):
        override = parse(argument)
        if override is not None and override.is_sweep_override():
            if override.key_or_group in ("experiment", "experiment_name"):
                raise UserError(f"{argument}: this stage works on one experiment at a time")
            argument = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        kept.append(argument)
    takes_no_mode = any(a.startswith("-") for a in kept)  # --cfg and the like
    return kept[1:] if takes_no_mode else kept
