"""Pages from jinja templates; a value that a template lacks raises."""

from pathlib import Path
from typing import Any

import jinja2


def render(template: Path, **values: Any) -> str:
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  pages are Markdown, not HTML
    )
    return environment.from_string(template.read_text(encoding="utf-8")).render(values)
