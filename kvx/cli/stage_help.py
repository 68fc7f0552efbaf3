"""`kvx run --help`: what a stage does, the options of each group, the fields that it reads.

The text is read from the configuration tree, whose comments say what each field does, so that it
comes without importing Hydra.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from kvx.cli.stages import Stage
from kvx.config.folders import conf_dir

GROUPS = ("dataset", "engine", "model", "press", "budget", "controller", "experiment")
FOLDER = ("--config-dir", "-cd")
EXAMPLES = {
    "serve": (
        "kvx serve model=hf model.path=org/name press=snapkv budget=0.5",
        "kvx serve press=knorm budget=0.25 controller=reactive",
        "kvx serve budget=certified certificate=FILE",
    ),
}  # of stages that take no sweep; the others share those below
SWEEPS = (
    "kvx {name} experiment=demo",
    "kvx {name} -m press=snapkv,knorm budget=1.0,0.5,0.2",
    "kvx {name} model=smollm2 dataset=niah experiment_name=mine",
)
OF_EXPERIMENTS = (
    "kvx {name} experiment=demo",
    "kvx {name} experiment_name=mine",
    "kvx {name} experiment_name=mine paths.output=/elsewhere/outputs",
)


def stage_help(stage: Stage, argv: Sequence[str] = ()) -> str:
    """The help of `stage`; options in a folder that `argv` names with --config-dir are listed."""
    folders = [conf_dir(), *_folders(argv)]
    examples = EXAMPLES.get(stage.name, OF_EXPERIMENTS if stage.aggregates else SWEEPS)
    blocks = _blocks(conf_dir() / "config.yaml")
    sections = [*(s for s in stage.reads if s in blocks), "paths"]
    return "\n".join(
        [
            f"kvx {stage.name}: {stage.help}.",
            "",
            "Examples:",
            *(f"  {line.format(name=stage.name)}" for line in examples),
            "",
            "Groups, as in press=snapkv:",
            *(f"  {group}: {', '.join(_options(group, folders))}" for group in GROUPS),
            "",
            "Fields with their defaults, as in " + f"{_example(sections, blocks)}:",
            *(f"  {line}" for section in sections for line in blocks[section]),
            "",
            "--cfg job shows all that was composed, --hydra-help Hydra's own options.",
        ]
    )


def _folders(argv: Sequence[str]) -> Iterator[Path]:
    for at, argument in enumerate(argv):
        name, _, value = argument.partition("=")
        if name in FOLDER:
            yield Path(value or (argv[at + 1] if at + 1 < len(argv) else "."))


def _options(group: str, folders: Sequence[Path]) -> list[str]:
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})


def _blocks(file: Path) -> dict[str, list[str]]:
    """The lines of each top-level key, its comments included."""
    blocks: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line[:1].isalpha():
            lines = blocks.setdefault(line.partition(":")[0], [])
        if line.strip() and not line.startswith("#"):
            lines.append(line)
    return blocks


def _example(sections: Sequence[str], blocks: dict[str, list[str]]) -> str:
    """The first field of the last section before `paths`, as it is typed."""
    for section in reversed(sections[:-1]):
        if len(blocks[section]) > 1:
            key, _, rest = blocks[section][1].strip().partition(":")
            return f"{section}.{key}={rest.partition('#')[0].strip()}"
    return "experiment_name=mine"
