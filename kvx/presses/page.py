"""`python -m kvx.presses.page` prints docs/presses.md."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from kvx.cli.press_files import shipped_presses
from kvx.config.inner_press import wrappers
from kvx.config.model_features import ModelFeature
from kvx.config.schema import PressConfig
from kvx.engines.kvpress.applicability import DOES
from kvx.presses.coverage import covered, families, lacking
from kvx.presses.properties import DECODING, HEADER, falls_back, properties
from kvx.report.template import render

WIDE = {"needs", "requires", "paper"}  # columns of the first table


def page() -> str:
    """The text of docs/presses.md."""
    presses = [press for press in shipped_presses() if press.method is not None]
    cells = {press.name: dict(zip(HEADER, properties(press), strict=True)) for press in presses}
    short = [name for name in HEADER if name not in WIDE]
    features = [f for f in ModelFeature if f is not ModelFeature.full_layers]
    text = render(
        Path(__file__).with_name("presses.md.j2"),
        presses=table(["press", "keeps", "needs", "requires", "paper"], map(_about, presses)),
        properties=table(short, [[row[name] for name in short] for row in cells.values()]),
        fallen=table(
            ["press", "where", "what it is then"],
            [[p.name, f"`{when}`", why] for p in presses for when, why in falls_back(p)],
        ),
        files=table(["press", "file", "models"], [row for p in presses for row in _files(p)]),
        features="\n".join(map(_feature, features)),
        uncovered="\n".join(_uncovered(presses)),
        wrappers=", ".join(f"`{name}`" for name in wrappers()),
        n_families=len(families()),
        decoding=", ".join(f"`{name}`" for name in DECODING),
        refused="\n".join(f"- `{p.name}` {p.refused}" for p in presses if p.refused),
    )
    return text.rstrip() + "\n"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _about(press: PressConfig) -> list[str]:
    paper = f"[paper]({press.paper})" if press.paper else "-"
    needs, requires = (", ".join(o.name for o in names) for names in (press.needs, press.requires))
    return [f"`{press.name}`", press.summary, needs or "-", requires or "-", paper]


def _files(press: PressConfig) -> list[list[str]]:
    return [
        [press.name, f"`{file.file}`", ", ".join(file.models) or "as the name says"]
        for file in press.hub
    ]


def _feature(feature: ModelFeature) -> str:
    without = ", ".join(lacking(feature)) or "none"
    return f"- `{feature.name}`: it {DOES[feature]}; families without: {without}"


def _uncovered(presses: Sequence[PressConfig]) -> list[str]:
    """A line for presses that the same families are missing of."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for press in presses:
        if press.refused is None:
            known = covered(press)
            alike.setdefault(tuple(f for f in families() if f not in known), []).append(press.name)
    ordered = sorted(alike.items(), key=lambda item: len(item[0]))
    return [f"- {', '.join(names)}: {', '.join(missing)}" for missing, names in ordered if missing]


if __name__ == "__main__":
    print(page(), end="")
