r"""What is typed for a character that a command line cannot hold: `\n`, `\t`, and `\\` for `\`."""

import re
from dataclasses import replace

from kvx.config import TemplateConfig

_ESCAPE = re.compile(r"\\([nt\\])")
_MEANT = {"n": "\n", "t": "\t", "\\": "\\"}


def unescaped(text: str) -> str:
    r"""`text` with `\n`, `\t` and `\\` replaced; any other backslash stays as it is."""
    return _ESCAPE.sub(lambda found: _MEANT[found[1]], text)


def template_of(typed: TemplateConfig) -> TemplateConfig:
    """The templates that were meant, from those that were typed."""
    return replace(
        typed,
        context=unescaped(typed.context),
        question=unescaped(typed.question),
        answer_prefix=unescaped(typed.answer_prefix),
    )
