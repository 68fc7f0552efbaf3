"""The command line of every stage: Hydra, plus numeric budgets, one-line errors and exit codes.

Exit 0: done. 1: some of the work failed. 2: the request was wrong, nothing was started.
3: not finished (kvx.status). 130: interrupted. Set HYDRA_FULL_ERROR=1 to see tracebacks.
"""

import errno
import inspect
import os
import sqlite3
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kvx.config import Config, conf_dir, register
from kvx.errors import RunFailedError, Submitted, UserError
from kvx.messages import explain

BUDGET_OPTIONS = ("ratio", "tokens", "certified")
MULTIRUN = ("-m", "--multirun")
WORKERS = ("hydra/launcher=kvx_local", "hydra/launcher=kvx_slurm")
# what an experiment or a server has one of, whatever is swept
SECTIONS = (
    "analyze", "certify", "plan", "score", "serve", "simulate", "status", "train", "verify",
)  # fmt: skip
Stage = Callable[..., None]  # of a list of configurations; `pool=` too if it can use workers


def stage(name: str, function: Stage, aggregates: bool = False) -> Callable[[], None]:
    """The `main` of stage `name`: parses the command line and calls `function` with its points.

    A stage that `aggregates` works on a whole experiment: it accepts the same arguments as `run`,
    but ignores sweeps, since it reads what is on disk. No stage takes sweeps of `SECTIONS`.
    """

    def main() -> None:
        try:
            code = run_stage(name, function, sys.argv[1:], aggregates)
            sys.stdout.flush()
        except BrokenPipeError:  # `kvx-run --cfg job | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        if code:
            sys.exit(code)

    return main


def run_stage(name: str, function: Stage, argv: list[str], aggregates: bool = False) -> int:
    """Run a stage as the command line would; returns the exit code."""
    debug = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        _refuse_sweeps(name, argv)
        arguments = (
            drop_sweeps(argv) if aggregates else after_options(numeric_budgets(with_workers(argv)))
        )
        _run_hydra(name, function, arguments, points=not aggregates)
    except (KeyboardInterrupt, Exception) as error:
        if debug:
            raise
        code, message = describe(error)
        if code is None:
            raise
        print(f"kvx {name}: {message}", file=sys.stderr)
        return code
    return 0


def compose(*overrides: str, stage: str = "run") -> Config:
    """The configuration that the command line `overrides` would give; for notebooks and tests.

    Raises `UserError` where the command line would end with one line.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    register()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            cfg = hydra_compose(stage, numeric_budgets(list(overrides)))
        return to_config(cfg)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from None


def to_config(cfg: DictConfig) -> Config:
    """The typed form of a composed configuration. Raises `UserError` if it makes no sense."""
    from kvx.sweep import typed

    return checked([typed(cfg)])[0]


def checked(configs: Sequence[Config], points: bool = True) -> list[Config]:
    """The configurations of a sweep, all of them checked before anything is started.

    In a sweep over presses and budgets, `press=none` stands for the full cache at every budget.
    Without `points` the fields that only make sense for a point (press, budget) are not checked.
    """
    from kvx.validate import check, full_cache, wants_less_of_the_full_cache

    configs = list(configs)
    if not all(map(wants_less_of_the_full_cache, configs)):
        configs = [full_cache(c) if wants_less_of_the_full_cache(c) else c for c in configs]
    for config in configs:
        check(config, points)
    return configs


def _run_hydra(name: str, function: Stage, argv: list[str], points: bool) -> None:
    """Let Hydra compose; our errors travel around it, because it would print its own text."""
    caught: list[BaseException] = []

    takes_pool = "pool" in inspect.signature(function).parameters

    def attempt(configs: Callable[[], Sequence[Config]], pool: Any) -> None:
        extra = {"pool": pool} if takes_pool and pool is not None else {}
        try:
            function(checked(configs(), points), **extra)
        except (KeyboardInterrupt, Exception) as error:
            caught.append(error)

    def bundle(configs: Sequence[Config], pool: Any = None) -> None:
        attempt(lambda: configs, pool)

    here = os.getpid()

    def task(cfg: DictConfig) -> None:
        from kvx.sweep import typed

        def alone() -> list[Config]:
            if takes_pool:
                _refuse_workers()
            return [typed(cfg)]

        attempt(alone, None)
        if caught and os.getpid() != here:  # another launcher's job: its error must reach Hydra
            raise caught[0]

    task.bundle = bundle  # type: ignore[attr-defined]
    before, sys.argv = sys.argv, [sys.argv[0], *argv]
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise instead of printing and exiting
    try:
        hydra.main(config_path=str(conf_dir().resolve()), config_name=name, version_base="1.3")(
            task
        )()
    finally:
        sys.argv = before
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
    if caught:
        raise caught[0]


def _refuse_workers() -> None:
    """Raises `UserError` where workers were chosen for what is no sweep: none would start."""
    launcher = f"hydra/launcher={HydraConfig.get().runtime.choices['hydra/launcher']}"
    if launcher in WORKERS:
        raise UserError(
            f"{launcher}: works on sweeps; add -m, or `hydra: {{mode: MULTIRUN}}` to the experiment"
        )


def _parse(argument: str) -> Override | None:
    """The parsed override, or None for a flag or something Hydra shall complain about itself."""
    if argument.startswith("-") or "=" not in argument:
        return None
    try:
        return OverridesParser.create().parse_overrides([argument])[0]
    except HydraException:
        return None


def _refuse_sweeps(name: str, argv: list[str]) -> None:
    """Raises `UserError` for a sweep all of whose values but one would be dropped silently."""
    for argument in argv:
        override = _parse(argument)
        if override is None or not override.is_sweep_override() or not _several(override):
            continue
        section = override.key_or_group.partition(".")[0]
        if name == "serve" and section in ("press", "budget"):
            raise UserError(
                f"{argument}: a server has one {section} of its own; give one value, requests may "
                "name others"
            )
        if name == "serve":
            raise UserError(f"{argument}: several values; a server takes one")
        if section in SECTIONS:
            raise UserError(
                f"{argument}: several values; {section}.* takes one, with or without -m"
            )


def _several(override: Override) -> bool:
    try:
        return len(list(override.sweep_string_iterator())) > 1
    except HydraException:  # glob(…): only Hydra knows what it finds
        return True


def numeric_budgets(argv: list[str]) -> list[str]:
    """Rewrite `budget=0.5,0.2` to `budget.ratio=0.5,0.2`, since `budget` is also a config group.

    Flags come first in the result: argparse does not take them between overrides.
    """
    rewritten = [_numeric_budget(a) if a.startswith("budget=") else a for a in argv]
    multirun = [a for a in rewritten if a in MULTIRUN]
    return multirun + [a for a in rewritten if a not in MULTIRUN]


def with_workers(argv: list[str]) -> list[str]:
    """Add `-m` where a launcher with workers is asked for: Hydra starts it for sweeps only."""
    asked = any(a in WORKERS for a in argv) and not any(a.startswith("-") for a in argv)
    return ["-m", *argv] if asked else argv


def after_options(argv: list[str]) -> list[str]:
    """Let a fixed field of a swept group wait for the group's option.

    `press=snapkv,pyramidkv press.method.window_size=32`: Hydra would set the field before there is
    a press that has it; as a sweep of one value it is set for each point.
    """
    overrides = {a: o for a in argv if (o := _parse(a)) is not None}
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


def _numeric_budget(argument: str) -> str:
    override = _parse(argument)
    if override is None:
        raise UserError(f"{argument}: cannot be read; write e.g. budget=1.0,0.5,0.2")
    values: list[Any] = [override.value()]
    if override.is_sweep_override():
        values = list(override.sweep_iterator(transformer=lambda value: value))
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    names = [str(v) for v in values if v not in numbers]
    unknown = [n for n in names if n not in BUDGET_OPTIONS]
    if unknown:
        raise UserError(
            f"{argument}: {unknown[0]!r} is no budget; give a fraction such as 0.5, or "
            "budget=tokens budget.tokens=256"
        )
    if numbers and names:
        raise UserError(f"{argument}: mixes numbers and option names; sweep one or the other")
    if not numbers:
        return argument
    return "budget.ratio=" + ",".join(f"{v:g}" for v in numbers)


def drop_sweeps(argv: list[str]) -> list[str]:
    """The arguments of `run` without its sweep: no `-m`, and the first of several values."""
    kept = ["hydra.mode=RUN"]
    for argument in numeric_budgets([a for a in argv if a not in MULTIRUN]):
        override = _parse(argument)
        if override is not None and override.is_sweep_override():
            if override.key_or_group in ("experiment", "experiment_name"):
                raise UserError(f"{argument}: this stage works on one experiment at a time")
            argument = f"{override.get_key_element()}={next(override.sweep_string_iterator())}"
        kept.append(argument)
    if any(a.startswith("-") for a in kept):  # --help, --cfg and the like take no mode
        kept.remove("hydra.mode=RUN")
    return kept


def describe(error: BaseException) -> tuple[int | None, str]:
    """Exit code and one line for an error a user can cause; code None for one that is a bug."""
    match error:
        case KeyboardInterrupt():
            kept = "interrupted; what is finished is kept, type the same command to go on"
            return 130, str(error) or kept
        case UserError():
            return 2, str(error)
        case Submitted():
            return 0, str(error)
        case RunFailedError():
            return error.exit_code, str(error)
        case CompactHydraException() | OmegaConfBaseException() | HydraException():
            return 2, explain(error)
        case AssertionError() if "Unexpected type for root" in str(error):
            return 2, "press.method: choose a press first (press=none has no method)"
        case sqlite3.OperationalError() if "full" in str(error) or "I/O" in str(error):
            return 1, f"disk full ({error}); free some space and type the same command to go on"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return 1, (
                f"disk full while writing {error.filename or 'results'}; free some space and type "
                "the same command to go on"
            )
        case FileNotFoundError() if traceback.extract_tb(error.__traceback__)[-1].name == "mkdir":
            # a folder that cannot be made: automounted homes and scratch say this, not EACCES
            return 2, (
                f"cannot make {error.filename}: {error.strerror}; set paths.output (results) or "
                "paths.multirun (logs) elsewhere"
            )
        case (
            PermissionError()
            | NotADirectoryError()
            | FileExistsError()
            | OSError(errno=errno.EROFS)
        ):
            return 2, (
                f"cannot write {error.filename}: {error.strerror}; set paths.output (results) or "
                "paths.multirun (logs) elsewhere"
            )
    return None, ""
