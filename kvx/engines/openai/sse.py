"""Parse the events of a stream from its bytes, as they come.

The openai client's own parser costs more than all else that is done for a token.
"""

import json
from collections.abc import Iterator
from typing import Any

DATA, END = b"data:", b"[DONE]"


class Events:
    """Splits the bytes of server-sent events into their JSON values; `done` after `[DONE]`."""

    def __init__(self) -> None:
        self.done = False
        self._line = b""  # the beginning of one
        self._data: list[bytes] = []  # of an event that goes on

    def feed(self, piece: bytes) -> Iterator[Any]:
        """The values whose events end in `piece`. Raises `ValueError` for broken JSON."""
        *lines, self._line = (self._line + piece).split(b"\n")
        for line in lines:
            if line.startswith(DATA):
                self._data.append(line[len(DATA) :])
            elif self._data and not line.rstrip(b"\r"):
                data, self._data = b"\n".join(self._data).strip(), []
                if data.startswith(END):
                    self.done = True
                    return
                yield json.loads(data.decode())  # bytes: it would guess at their encoding
