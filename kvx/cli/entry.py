"""Entry points: `kvx run …`, `kvx-run …` and `python -m kvx.run …` do the same."""

import difflib
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from kvx import __version__
from kvx.cli.stages import STAGES, TOOLS

HELP = ("--help", "-h")
OVERVIEW = """\
kvx {version}: which KV-cache compressor to use, at which budget, and how sure we are

usage: kvx STAGE [OVERRIDES]    kvx STAGE --help    kvx --version

{lines}

Start with: kvx all experiment=demo"""


def stage() -> None:
    """The console script `kvx-<name>`."""
    start(Path(sys.argv[0]).stem.removeprefix("kvx-"))


def start(name: str) -> None:
    """Run a stage or tool with this process's arguments; exits with its code if that is not 0."""
    try:
        code = _run(name, sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # `kvx-run --cfg job | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    if code:
        sys.exit(code)


def kvx() -> None:
    """The console script `kvx` and `python -m kvx`: the name of a stage, then its arguments."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in STAGES or name in TOOLS:
        sys.argv = [_program_of(name), *arguments]
        start(name)
    elif name in HELP:
        print(overview())
    elif name == "--version":
        print(f"kvx {__version__}")
    else:
        names = [*STAGES, *TOOLS]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        print(f"kvx: {name}: no such stage; {hint}", file=sys.stderr)
        sys.exit(2)


def overview() -> str:
    """kvx's version and its stages, a line each."""
    commands = {s.name: s.help for s in STAGES.values()} | {n: h for n, (_, h) in TOOLS.items()}
    lines = "\n".join(f"  {name:<10}{text}" for name, text in commands.items())
    return OVERVIEW.format(version=__version__, lines=lines)


def _run(name: str, argv: Sequence[str]) -> int:
    if name in TOOLS:
        return int(pkgutil.resolve_name(TOOLS[name][0])(argv))
    if any(argument in HELP for argument in argv):
        from kvx.cli.stage_help import stage_help

        print(stage_help(STAGES[name], argv))
        return 0
    from kvx.cli.command import run_stage  # Hydra takes longer than all of the above

    return run_stage(name, list(argv))


def _program_of(name: str) -> str:
    """`sys.argv[0]` as without `kvx` in front; results hold the command that made them."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return str(program.parent / name / "__main__.py")
    return str(program.with_name(f"kvx-{name}"))
