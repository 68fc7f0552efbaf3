"""What is known of kvpress's own classes, and of what somebody makes from them."""

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import kvpress
from kvpress import BasePress


def _known(*names: str) -> tuple[type, ...]:
    return tuple(getattr(kvpress, name) for name in names if hasattr(kvpress, name))


# those that hide entries in `compress`; KVzip's kind in a forward hook of its own
MASKING = _known(
    "AdaKVPress", "CriticalAdaKVPress", "DMSPress", "DuoAttentionPress", "FastKVzipPress",
    "KVzipPress", "LUKVPress",
)  # fmt: skip
DECODING = (kvpress.DecodingPress, kvpress.PrefillDecodingPress)

# what is installed, of which nobody edits a line
_INSTALLED = tuple(
    Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_KVX = Path(__file__).parents[2]


def parts_of(press: Any) -> Iterator[Any]:
    """The press and those it wraps."""
    yield press
    for value in getattr(press, "__dict__", {}).values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, BasePress):
                yield from parts_of(item)


def packs(press: Any) -> bool:
    """Whether it turns what it keeps to the positions 0 to kept - 1, so that the text goes on
    right behind them, as in kvpress's pipeline.
    """
    return any(
        isinstance(part, kvpress.KeyRerotationPress)
        or (isinstance(part, kvpress.FinchPress) and part.rerotate_keys)
        for part in parts_of(press)
    )


def press_line(error: BaseException) -> str | None:
    """`file:line` of the press's code that raised; None if no press did.

    Somebody's own code comes before what they call of a library.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    at = [i for i, (f, _) in enumerate(frames) if isinstance(f.f_locals.get("self"), BasePress)]
    if not at:
        return None
    own = [found for found in frames[at[0] :] if not _is_installed(found[0])]
    frame, line = own[-1] if own else frames[at[-1]]
    path = Path(frame.f_code.co_filename)
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return f"{shown}:{line}"


def _is_installed(frame: FrameType) -> bool:
    path = Path(frame.f_code.co_filename)
    return any(path.is_relative_to(folder) for folder in (*_INSTALLED, _KVX))
