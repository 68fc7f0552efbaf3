r"""How characters are typed that a command line cannot hold: `\n`, `\r`, `\t`, `\\`."""

import re
from dataclasses import replace
from typing import Any

from kvx.config.dataset import DatasetConfig, TemplateConfig
from kvx.config.schema import DecodingConfig, PromptConfig, ScoreConfig

_ESCAPE = re.compile(r"\\([nrt\\])")
_MEANT = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def unescaped(text: str) -> str:
    r"""`text` with `\n`, `\r`, `\t` and `\\` replaced; any other backslash stays as it is."""
    return _ESCAPE.sub(lambda found: _MEANT[found[1]], text)


def as_meant(node: Any) -> Any:
    """A configuration node as it was meant: its texts and stop strings without escapes."""
    match node:
        case TemplateConfig():
            return replace(
                node,
                context=unescaped(node.context),
                question=unescaped(node.question),
                answer_prefix=unescaped(node.answer_prefix),
            )
        case DatasetConfig():
            return replace(node, template=as_meant(node.template), until=_stops(node.until))
        case PromptConfig(system=str() as system):
            return replace(node, system=unescaped(system))
        case DecodingConfig():
            return replace(node, until=_stops(node.until))
        case ScoreConfig(until=list() as until):
            return replace(node, until=_stops(until))
    return node


def _stops(until: list[str]) -> list[str]:
    return [unescaped(stop) for stop in until]
