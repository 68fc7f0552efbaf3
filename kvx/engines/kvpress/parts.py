"""What kvx knows of kvpress's classes, and of presses that users build from them."""

import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kvpress
from kvpress import BasePress


def _known(*names: str) -> tuple[type, ...]:
    return tuple(getattr(kvpress, name) for name in names if hasattr(kvpress, name))


# they hide entries in `compress`; KVzip and its kin in a forward hook of their own
MASKING = _known(
    "AdaKVPress", "CriticalAdaKVPress", "DMSPress", "DuoAttentionPress", "FastKVzipPress",
    "KVzipPress", "LUKVPress",
)  # fmt: skip
# they write into the keys they are given
WRITING = _known("ThinKPress")
# they call backward
DIFFERENTIATING = _known("KVgradPress")
DECODING = (kvpress.DecodingPress, kvpress.PrefillDecodingPress)

# folders of installed code, which users do not edit
_INSTALLED = tuple(
    Path(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_PACKAGES = {"site-packages", "dist-packages"}
_KVX = Path(__file__).parents[2]


def parts_of(press: Any) -> Iterator[Any]:
    """The press and those it wraps."""
    yield press
    for value in getattr(press, "__dict__", {}).values():
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, BasePress):
                yield from parts_of(item)


def needs_gradients(press: Any) -> bool:
    """Whether it differentiates through the model."""
    return any(isinstance(part, DIFFERENTIATING) for part in parts_of(press))


def zeroes(press: Any) -> bool:
    """Whether it sets channels of keys to zero, which then tell nothing and still take memory."""
    return any(isinstance(part, kvpress.ThinKPress) for part in parts_of(press))


def packs(press: Any) -> bool:
    """Whether it rotates what it keeps to positions 0 to kept - 1; the text continues right behind
    them, as in kvpress's pipeline.
    """
    return any(
        isinstance(part, kvpress.KeyRerotationPress)
        or (isinstance(part, kvpress.FinchPress) and part.rerotate_keys)
        for part in parts_of(press)
    )


def press_line(error: BaseException) -> str | None:
    """`file:line` of the press's code that raised; None if no press did.

    A user's own code comes first: before the library code that it calls or is called by.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    at = [i for i, (f, _) in enumerate(frames) if isinstance(f.f_locals.get("self"), BasePress)]
    if not at:
        return None
    own = [found for found in frames[at[0] :] if not _is_installed(found[0].f_code.co_filename)]
    if own:
        return _shown(own[-1][0].f_code.co_filename, own[-1][1])
    pressed = frames[at[-1]][0].f_locals["self"]
    if (defined := own_method(type(pressed))) is not None:
        return defined
    return _shown(frames[at[-1]][0].f_code.co_filename, frames[at[-1]][1])


def own_line(error: BaseException) -> str | None:
    """`file:line` where a user's own code raised; None if only libraries did."""
    found = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if Path(frame.f_code.co_filename).is_file() and not _is_installed(frame.f_code.co_filename)
    ]
    return _shown(*found[-1]) if found else None


def own_method(kind: type) -> str | None:
    """`file:line` where a user's class defines the press's method."""
    for name in ("compress", "score"):
        code = getattr(vars(kind).get(name), "__code__", None)
        if code is not None and not _is_installed(code.co_filename):
            return _shown(code.co_filename, code.co_firstlineno)
    return None


def _is_installed(file: str) -> bool:
    path = Path(file)  # packages of another environment may be in use beside this one's
    return bool(_PACKAGES & set(path.parts)) or any(
        path.is_relative_to(folder) for folder in (*_INSTALLED, _KVX)
    )


def _shown(file: str, line: int) -> str:
    path, here = Path(file), Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}"
