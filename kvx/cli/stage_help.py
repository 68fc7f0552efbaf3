"""`kvx run --help`: what a stage does, the options of each group, the fields that it reads."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from kvx.cli.stages import GROUPS, Stage
from kvx.config.folders import conf_dir
from kvx.config.help import describe

FOLDER = ("--config-dir", "-cd")
EXAMPLES = {
    "serve": (
        "kvx serve model=hf model.path=org/name press=snapkv budget=0.5",
        "kvx serve press=knorm budget=0.25 controller=reactive",
        "kvx serve budget=certified certificate=FILE",
    ),
    "compare": (
        "kvx compare full/none compressed/snapkv-0.5",
        "kvx compare mine results/samples_gsm8k_2026-01-31T12-00-00.jsonl",
        "kvx compare compare.a=a.eval compare.b=b.eval compare.metric=match",
    ),
    "export": (
        "kvx export experiment=demo",
        "kvx export experiment=demo export.formats=[latex,pdf]",
        "kvx export experiment_name=mine export.formats=[kvpress] export.folder=results",
    ),
    "presses": (
        "kvx presses",
        "kvx presses model=hf model.path=org/name",
        "kvx presses model=hf model.path=org/name press.queries=kvpress",
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
TEXT = """\
kvx {name}: {help}.

Examples:
{examples}

Groups, as in press=snapkv:
{groups}

Fields with their defaults:
{fields}

--cfg job shows all that was composed, --hydra-help Hydra's own options."""


def stage_help(stage: Stage, argv: Sequence[str] = ()) -> str:
    """The help of `stage`; it lists options in folders that `argv` names with --config-dir too."""
    folders = [conf_dir(), *_folders(argv)]
    examples = EXAMPLES.get(stage.name, OF_EXPERIMENTS if stage.aggregates else SWEEPS)
    return TEXT.format(
        name=stage.name,
        help=stage.help,
        examples="\n".join(f"  {line.format(name=stage.name)}" for line in examples),
        groups="\n".join(f"  {group}: {', '.join(_options(group, folders))}" for group in GROUPS),
        fields=describe([*stage.reads, "paths"]),
    )


def _folders(argv: Sequence[str]) -> Iterator[Path]:
    for at, argument in enumerate(argv):
        name, _, value = argument.partition("=")
        if name in FOLDER:
            yield Path(value or (argv[at + 1] if at + 1 < len(argv) else "."))


def _options(group: str, folders: Sequence[Path]) -> list[str]:
    return sorted({file.stem for folder in folders for file in (folder / group).glob("*.yaml")})
