"""report.html: one file with the data, the plots' library and the code that shows them."""

import base64
import hashlib
import logging
import webbrowser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from kvx.analyze.looks import COLOURS, DARK_COLOURS
from kvx.report.guard_section import device_budgets
from kvx.report.page.answers import Shown, answers
from kvx.report.page.packing import packed
from kvx.report.page.tables_shown import fidelity_figures, figures
from kvx.store.atomic import write_text
from kvx.store.catalog import PointRecord

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
MOST_BYTES = 5_000_000
VENDORED = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
# one after the other they are one module: what a file declares, those after it use
MODULES = (
    "data.js", "elements.js", "wording.js", "diff.js", "heat.js", "curves.js", "costs.js",
    "fidelity.js", "samples.js", "app.js",
)  # fmt: skip


def write_page(
    path: Path,
    told: Mapping[str, Any],
    points: Sequence[PointRecord],
    frames: Mapping[str, pd.DataFrame],
    output: Path,
    confidence: float,
    stamp: str,
) -> None:
    """Write report.html. `told` is what report.md is made from (`report.build`)."""
    shown = figures(
        points, frames["bin_stats"], frames["comparisons"], frames["transitions"],
        frames["catastrophe_stats"], frames.get("dose_response"), frames["fidelity_stats"],
        confidence, device_budgets(frames["guard_stats"]),
    )  # fmt: skip
    head = {
        "name": told["name"], "requests": int(told["n_requests"]),
        "responses": int(told["n_responses"]), "verdict": list(told["verdict"]),
        "findings": list(told["findings"]),
        "warnings": list(told["warnings"]), "confidence": told["confidence"],
        "facts": [[k, v] for k, v in told["reproducibility"]],
    }  # fmt: skip
    empty = Shown("", 0, 0, None)
    taken = len(page_of({**head, **shown}, empty, stamp).encode())
    number = {p["id"]: i for i, p in enumerate(shown["points"])}
    samples = answers(points, number, output, MOST_BYTES - taken)
    write_text(path, page_of({**head, **shown}, samples, stamp))


def write_compared(path: Path, told: Mapping[str, Any], stats: pd.DataFrame, stamp: str) -> None:
    """Write report.html of an experiment without answers, from its fidelity_stats."""
    head = {
        "name": told["name"], "requests": 0, "responses": 0, "verdict": list(told["verdict"]),
        "findings": [], "warnings": list(told["warnings"]), "confidence": told["confidence"],
        "facts": [[k, v] for k, v in told["reproducibility"]],
    }  # fmt: skip
    shown = {**head, **fidelity_figures(stats)}
    write_text(path, page_of(shown, Shown(packed({}), 0, 0, None), stamp))


def show(path: Path) -> None:
    """Open the page in the user's browser; where there is none, say so."""
    if not webbrowser.open(path.absolute().as_uri()):
        log.warning("report: found no browser; open %s in one", path.absolute())


def page_of(shown: Mapping[str, Any], samples: Shown, stamp: str) -> str:
    """The page that shows the figures of `shown` and the examples of `samples`."""
    libraries = [_read(name) for name in VENDORED]
    own = "\n".join(f"// ---- {name}\n{_read(f'code/{name}')}" for name in MODULES)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True)
    return environment.from_string(_read("page.html.j2")).render(
        name=shown["name"], style=_read("style.css"), libraries=libraries, own=own,
        hashes=[_hash(script) for script in (*libraries, own)],
        figures=packed(shown), samples=samples, stamp=stamp,
        colours=COLOURS, dark_colours=DARK_COLOURS,
    )  # fmt: skip


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """As a Content-Security-Policy names a script that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
