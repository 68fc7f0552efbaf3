"""report.html: one file with the data, the plots' library and the code that shows them."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from kvx.report.page.answers import answers
from kvx.report.page.packing import packed
from kvx.report.page.tables_shown import figures
from kvx.store.atomic import write_text
from kvx.store.catalog import PointRecord

HERE = Path(__file__).parent
MOST_BYTES = 5_000_000
VENDORED = ("vendor/d3.min.js", "vendor/plot.umd.min.js")
# one after the other they are one module: what a file declares, those after it use
MODULES = (
    "data.js", "elements.js", "wording.js", "diff.js", "heat.js", "curves.js", "costs.js",
    "samples.js", "app.js",
)  # fmt: skip
TABLES = ("bin_stats", "comparisons", "transitions", "catastrophe_stats")


def write_page(
    path: Path,
    told: Mapping[str, Any],
    points: Sequence[PointRecord],
    frames: Mapping[str, pd.DataFrame],
    output: Path,
    stamp: str,
) -> None:
    """Write report.html. `told` is what report.md is made from (`report.build`)."""
    shown = figures(points, *(frames[name] for name in TABLES))
    head = {
        "name": told["name"], "requests": int(told["n_requests"]),
        "responses": int(told["n_responses"]), "findings": list(told["findings"]),
        "warnings": list(told["warnings"]), "confidence": told["confidence"],
        "facts": [[k, v] for k, v in told["reproducibility"]],
    }  # fmt: skip
    scripts = {name: _read(name) for name in VENDORED}
    own = "\n".join(f"// ---- {name}\n{_read(f'code/{name}')}" for name in MODULES)
    style, figured = _read("style.css"), packed({**head, **shown})
    taken = sum(len(t.encode()) for t in (*scripts.values(), own, style, figured))
    number = {p["id"]: i for i, p in enumerate(shown["points"])}
    samples = answers(points, number, output, MOST_BYTES - taken - 20_000)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=True)
    page = environment.from_string(_read("page.html.j2")).render(
        name=told["name"], style=style, libraries=list(scripts.values()), own=own,
        hashes=[_hash(text) for text in (*scripts.values(), own)],
        figures=figured, samples=samples, stamp=stamp,
    )  # fmt: skip
    write_text(path, page)


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """As a Content-Security-Policy names a script that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
