"""`python -m kvx.presses.page` prints docs/presses.md."""

from pathlib import Path

from kvx.cli.press_files import shipped_presses
from kvx.config.model_features import ModelFeature
from kvx.engines.kvpress.applicability import DOES
from kvx.presses.properties import HEADER, properties
from kvx.report.template import render


def page() -> str:
    """The text of docs/presses.md."""
    presses = [press for press in shipped_presses() if press.method is not None]
    rows = [HEADER, ["---"] * len(HEADER), *(properties(press) for press in presses)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    told = [f for f in ModelFeature if f is not ModelFeature.full_layers]
    features = "\n".join(f"- `{feature.name}`: it {DOES[feature]}" for feature in told)
    text = render(Path(__file__).with_name("presses.md.j2"), table=table, features=features)
    return text.rstrip() + "\n"


if __name__ == "__main__":
    print(page(), end="")
