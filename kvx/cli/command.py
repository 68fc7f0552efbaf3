"""The command line of every stage: Hydra, plus numeric budgets, one-line errors and exit codes.

Exit 0: done. 1: some of the work failed. 2: the request was wrong, nothing was started. 3: not
finished (kvx.status). 130: interrupted. Set HYDRA_FULL_ERROR=1 to see tracebacks.
"""

import contextlib
import errno
import os
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from kvx.cli import arguments
from kvx.cli.arguments import WORKERS, understood
from kvx.cli.stages import STAGES, Stage
from kvx.config.folders import conf_dir
from kvx.config.messages import explain, of_reading, of_yaml
from kvx.config.overrides import parse
from kvx.config.schema import Config, register, shared_store
from kvx.errors import RunFailedError, Submitted, UserError, of_extra
from kvx.identity.user_code import look_again

ELSEWHERE = "set paths.output (results) or paths.multirun (logs) elsewhere"
Work = Callable[..., Any]  # of a list of configurations, or of one where the stage aggregates


def run_stage(name: str, argv: list[str], work: Work | None = None) -> int:
    """Run a stage as the command line would; returns the exit code. `work` replaces its own."""
    stage = STAGES[name]
    debug = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        look_again()
        argv = arguments.named(stage.positional, argv)
        arguments.refuse_sweeps(name, argv)
        argv = understood(argv)
        if stage.aggregates:
            argv = arguments.drop_sweeps(argv)
        else:
            argv = arguments.after_options(arguments.with_multirun(argv))
        _run_hydra(stage, work, argv)
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
    """The configuration that the command line `overrides` gives; for notebooks and tests.

    Raises `UserError` where the command line would end with one line.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    from kvx.config.sweep import typed

    register()
    look_again()
    try:
        folder = str(conf_dir().resolve())
        with shared_store(), initialize_config_dir(folder, version_base="1.3"):
            cfg = hydra_compose(stage, understood(list(overrides)))
        return checked([typed(cfg)])[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from None


def checked(configs: Sequence[Config], points: bool = True) -> list[Config]:
    """The configurations of a sweep, all checked before anything is started.

    In a sweep over presses and budgets, `press=none` stands for the full cache at every budget.
    Without `points`, fields that only a point needs (press, budget) are not checked.
    """
    from kvx.cli.checks import check, full_cache, wants_less_of_the_full_cache

    configs = list(configs)
    if any(c.press.method is not None for c in configs):
        configs = [full_cache(c) if wants_less_of_the_full_cache(c) else c for c in configs]
    for config in configs:
        check(config, points)
    return configs


def requested(configs: Sequence[Config], points: bool) -> list[Config]:
    """`checked`, and nothing that the command line asks for is dropped."""
    from kvx.config.distinct import refuse_dropped

    found = checked(configs, points)
    if points:
        refuse_dropped(found)
    return found


def _run_hydra(stage: Stage, work: Work | None, argv: list[str]) -> None:
    """Let Hydra compose; our errors travel around it, because it would print its own text."""
    caught: list[BaseException] = []
    points = not stage.aggregates

    def attempt(configs: Callable[[], Sequence[Config]], pool: Any) -> None:
        extra = {"pool": pool} if stage.takes_pool and pool is not None else {}
        try:
            with _variable("HYDRA_FULL_ERROR", full_error):  # as the user has it
                asked = requested(configs(), points)
                (work or stage.function())(asked if points else asked[0], **extra)
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  raised after Hydra
            caught.append(error)

    def bundle(configs: Sequence[Config], pool: Any = None) -> None:
        attempt(lambda: configs, pool)

    here = os.getpid()

    def task(cfg: DictConfig) -> None:
        from kvx.config.field_names import refuse_unknown
        from kvx.config.sweep import typed

        def alone() -> list[Config]:
            if stage.takes_pool:
                _refuse_workers()
            if points:
                _refuse_unswept(argv)
            refuse_unknown(HydraConfig.get(), "hydra")
            return [typed(cfg)]

        attempt(alone, None)
        if caught and os.getpid() != here:  # another launcher's job: its error must reach Hydra
            raise caught[0]

    task.bundle = bundle  # type: ignore[attr-defined]
    before, sys.argv = sys.argv, [sys.argv[0], *argv]
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    try:
        folder = str(conf_dir().resolve())
        # raise instead of printing and exiting
        with shared_store(), _variable("HYDRA_FULL_ERROR", "1"):
            hydra.main(config_path=folder, config_name=stage.name, version_base="1.3")(task)()
    finally:
        sys.argv = before
    if caught:
        raise caught[0]


@contextlib.contextmanager
def _variable(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable for a while, or unset it with None."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


def _refuse_workers() -> None:
    """Raises `UserError` for a launcher with workers outside a sweep: none would start."""
    launcher = f"hydra/launcher={HydraConfig.get().runtime.choices['hydra/launcher']}"
    if launcher in WORKERS:
        raise UserError(
            f"{launcher}: only for sweeps; add -m, or `hydra: {{mode: MULTIRUN}}` to the experiment"
        )


def _refuse_unswept(argv: Sequence[str]) -> None:
    """Raises `UserError` where an experiment's sweep would be ignored without `-m`."""
    settings = HydraConfig.get()
    if settings.mode is not RunMode.RUN or "hydra.mode=RUN" in argv:
        return
    params = understood([f"{k}={v}" for k, v in (settings.sweeper.get("params") or {}).items()])
    given = {o.key_or_group for a in argv if (o := parse(a)) is not None}
    left = [a for a in params if a.partition("=")[0] not in given]
    if left:
        raise UserError(
            f"{left[0]}: the experiment sweeps it; add -m, or `mode: MULTIRUN` under `hydra:` in "
            "its file, or give one value"
        )


def describe(error: BaseException) -> tuple[int | None, str]:
    """Exit code and one line for an error a user can cause; code None for a bug."""
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
        case ModuleNotFoundError() if (line := of_extra(error)) is not None:
            return 2, line
        case Exception() if (line := of_yaml(error)) is not None:
            return 2, line
        case ValueError() if traceback.extract_tb(error.__traceback__)[-1].name == "update":
            place = str(error).rpartition(": ")[2]
            return 2, f"{place}: is inside a list; give the whole list, as in decoding.until=[a]"
        case ValueError() if "Config group override" in str(error):
            return 2, "the command line names an option by a number or nothing; see --help"
        case ValueError() if "--multirun, --cfg" in str(error):
            return 2, (
                "--cfg and --info show one point; leave out -m (hydra.mode=RUN for an experiment "
                "that sweeps) and give one value to every field"
            )
        case AssertionError() if "Unexpected type for root" in str(error):
            return 2, "press.method: choose a press first (press=none has no method)"
        case sqlite3.OperationalError() if "full" in str(error) or "I/O" in str(error):
            return 1, f"disk full ({error}); free some space and type the same command to go on"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EFBIG):
            return 1, (
                f"disk full while writing {error.filename or 'results'}; free some space and type "
                "the same command to go on"
            )
        case PermissionError() | NotADirectoryError() if of_reading(error):
            return 2, (
                f"cannot read {error.filename}: {error.strerror}; check its permissions, or name "
                "another file"
            )
        case FileNotFoundError() if traceback.extract_tb(error.__traceback__)[-1].name == "mkdir":
            # automounted homes and scratch raise this, not EACCES
            return 2, f"cannot make {error.filename}: {error.strerror}; {ELSEWHERE}"
        case (
            PermissionError()
            | NotADirectoryError()
            | FileExistsError()
            | OSError(errno=errno.EROFS)
        ):
            return 2, f"cannot write {error.filename}: {error.strerror}; {ELSEWHERE}"
    return None, ""
