"""What every press does and needs, and whether it can be used on a model."""

from collections.abc import Sequence
from dataclasses import replace

from kvx.cli.press_files import shipped_presses
from kvx.config.language_model import ModelConfig
from kvx.config.schema import Config, PressConfig
from kvx.data.model_folder import files_of
from kvx.engines.kvpress.applicability import missing_of, reason
from kvx.presses.properties import DECODING, HEADER, falls_back, properties

# of a model that cannot be built from its configuration: a run says why
UNKNOWN = "not known before it is loaded"
APPLICABLE = "yes"


def print_presses(configs: Sequence[Config]) -> None:
    """A table of the presses of `conf/press`, and the press that was asked for, for each model.

    Raises `UserError` if there is no such model.
    """
    for number, config in enumerate({c.model.path: c for c in configs}.values()):
        files_of(config.model)
        own = config.press
        shipped = [
            replace(press, queries=own.queries, layers=own.layers)
            for press in shipped_presses()
            if press.name != own.name
        ]
        presses = sorted([*shipped, own], key=lambda press: press.name)
        found = missing_of(config.model)
        rows = [
            [*properties(press), _verdict(press, config.model, found)]
            for press in presses
            if press.method is not None
        ]
        lines = table([*HEADER, f"on {config.model.name}"], rows)
        print("\n".join([""] * bool(number) + lines), flush=True)
    print("\n".join(["", *_told(presses)]), flush=True)


def _told(presses: Sequence[PressConfig]) -> list[str]:
    """Where presses are not what their name says, and which of kvpress's are not here."""
    fallen = [[p.name, when, why] for p in presses for when, why in falls_back(p)]
    return [
        *table(["press", "not itself where", "it is then"], fallen),
        "",
        f"compress what is generated, which kvx does not do: {', '.join(DECODING)}",
    ]


def _verdict(press: PressConfig, model: ModelConfig, missing: dict[str, str] | None) -> str:
    why = reason(press, model, missing or {})
    if why is not None:
        return f"no: {why}"
    return UNKNOWN if missing is None else APPLICABLE


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns of equal width, two blanks apart."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    padded = ([c.ljust(w) for c, w in zip(row, widths, strict=True)] for row in (header, *rows))
    return ["  ".join(row).rstrip() for row in padded]
