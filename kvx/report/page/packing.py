"""Data inside a page: JSON, deflated, in base64, which no text in it can leave."""

import base64
import json
import math
import zlib
from typing import Any

import numpy as np
import pandas as pd

DIGITS = 6  # significant ones of every number


def packed(value: Any) -> str:
    """`value` as text for a `<script>` that is not run; read by `unpack` in data.js."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # half of an emoji, as a byte-wise tokenizer may leave it, is no UTF-8
    raw = text.encode("utf-8", errors="replace")
    return base64.b64encode(zlib.compress(raw, 9)).decode("ascii")


def columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as lists, one per column; what is not known is null."""
    return {str(name): [plain(v) for v in frame[name].tolist()] for name in frame.columns}


def plain(value: Any) -> Any:
    """A value as JSON has it: nan, infinity and missing are null, numbers have `DIGITS` digits."""
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        number = float(value)
        return float(f"{number:.{DIGITS}g}") if math.isfinite(number) else None
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    return str(value)


class Pool:
    """Texts by number, each kept once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str | None) -> int | None:
        if text is None:
            return None
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return self._numbers[text]
