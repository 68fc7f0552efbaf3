"""Which presses of kvpress a wrapper can work on, found by making them: no model is needed."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import hydra.utils
import kvpress
from kvpress import BasePress, ScorerPress

from kvx.config.inner_press import ONE, SEVERAL, methods
from kvx.engines.kvpress.parts import DECODING, MASKING, packs, parts_of
from kvx.errors import UserError, first_line

# they look at keys and values, entry by entry or all at once, and not at where they stand
ORDERLESS = (kvpress.KnormPress, kvpress.KeyDiffPress, kvpress.RandomPress, kvpress.QFilterPress)
# they weigh or fold the entries that the press inside chooses
TRANSPARENT = (kvpress.CriticalKVPress, kvpress.MergingPress)
# they make queries of a prompt's positions
ROTATING = (
    kvpress.SnapKVPress, kvpress.TOVAPress, kvpress.ExpectedAttentionPress, kvpress.CompactorPress,
    kvpress.NonCausalAttnPress, kvpress.CapPress,
)  # fmt: skip
# they ask for scores, and drop or hide entries themselves
SCORED = (
    kvpress.AdaKVPress, kvpress.CriticalKVPress, kvpress.CriticalAdaKVPress, kvpress.BlockPress,
    kvpress.ChunkPress, kvpress.ChunkKVPress, kvpress.KeyRerotationPress, kvpress.MergingPress,
    kvpress.DMSPress,
)  # fmt: skip
WITHOUT_WEIGHTS = (
    kvpress.AdaKVPress, kvpress.CriticalAdaKVPress, kvpress.BlockPress, kvpress.ChunkPress,
    kvpress.ChunkKVPress, kvpress.DMSPress,
)  # fmt: skip


def check_wrapping(name: str, method: Mapping[str, Any]) -> None:
    """Raises `UserError` for a press inside of another that does not compose with it, saying which
    presses of the group do.
    """
    for outer, slot in _wrapping(method):
        reason = _obstacle(outer)
        if reason is None:
            continue
        kind = str(outer["_target_"]).rpartition(".")[2]
        before: list[Any] = []
        told = f"{kind} works on"
        if slot == SEVERAL:
            first = outer[slot][0]
            told = f"{kind} can begin with"
            if _obstacle({**outer, slot: [first]}) is None:
                before = [first]
                told = f"{str(first['_target_']).rpartition('.')[2]} can be followed by"
        fit = [
            other
            for other, inner in methods().items()
            if _obstacle({**outer, slot: inner if slot == ONE else [*before, inner]}) is None
        ]
        if fit:  # else it is not the press inside that is wrong
            raise UserError(f"press={name}: {reason}; {told} {', '.join(fit)}")


def _wrapping(method: Any) -> Iterator[tuple[Mapping[str, Any], str]]:
    """The wrappers in a method, innermost first, each with its argument for what it wraps."""
    if isinstance(method, list):
        for item in method:
            yield from _wrapping(item)
    if not isinstance(method, Mapping):
        return
    for value in method.values():
        yield from _wrapping(value)
    for slot in (ONE, SEVERAL):
        if method.get(slot):
            yield method, slot


def _obstacle(outer: Mapping[str, Any]) -> str | None:
    """Why a wrapper cannot work on what its method names; None if it can."""
    try:
        with _quiet():
            press = hydra.utils.instantiate(outer, _convert_="all")
    except hydra.errors.InstantiationException as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        return first_line(cause) if isinstance(cause, AssertionError) else None
    return obstacle(press)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """kvpress warns of presses that are only tried here; a run shows its own."""
    log = logging.getLogger("kvpress")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def obstacle(press: Any) -> str | None:
    """Why a wrapper, already made, is not its method with what it wraps; None if it is."""
    if isinstance(press, kvpress.ComposedPress):
        return _of_chain(press.presses)
    inner = getattr(press, ONE, None)
    if not isinstance(press, BasePress) or not isinstance(inner, BasePress):
        return None
    outer, name = type(press).__name__, type(inner).__name__
    if isinstance(press, kvpress.PerLayerCompressionPress):
        if isinstance(inner, kvpress.PyramidKVPress):
            return f"{outer} and {name} both set the budgets of layers"
        return None
    if not isinstance(press, SCORED):
        return None
    if type(inner).compress is not ScorerPress.compress:
        return f"{outer} takes scores only, and {name} does more than score"
    if isinstance(press, WITHOUT_WEIGHTS) and _reads_weights(inner):
        return f"{outer} has no attention weights for {name}"
    if isinstance(press, kvpress.BlockPress) and not orderless(inner):
        return f"{outer} changes the order of entries from block to block, by which {name} goes"
    if isinstance(press, kvpress.ChunkPress) and _any(inner, ROTATING):
        return f"{outer} rotates the queries of {name} to positions of the prompt's end"
    return None


def _of_chain(presses: list[Any]) -> str | None:
    """Why presses cannot follow each other."""
    dropping: list[Any] = []
    for press in presses:
        name = type(press).__name__
        if any(_any(press, kinds) for kinds in (MASKING, DECODING, (kvpress.ComposedPress,))):
            return f"{name} drops no entries, so nothing can follow it or go before it"
        own = any(
            getattr(type(press), method) is not getattr(BasePress, method)
            for method in ("__call__", "forward_hook")
        )
        if own and not isinstance(press, kvpress.PerLayerCompressionPress):
            return f"{name} changes the forward pass, so it cannot be one of several"
        if isinstance(press, kvpress.ThinKPress):
            continue
        if not _takes_ratio(press):
            return f"no budget can be set for {name}"
        if dropping and packs(dropping[0]):
            return (
                f"{name} would leave gaps in the positions that {type(dropping[0]).__name__} made"
            )
        if dropping and not orderless(press):
            before = type(dropping[-1]).__name__
            return f"{name} goes by the order of entries, and {before} leaves them in another"
        dropping.append(press)
    return None if dropping else "none of the presses drops entries, so no budget can be set"


def _takes_ratio(press: Any) -> bool:
    try:
        press.compression_ratio = 0.5
    except AttributeError:
        return False
    return True


def orderless(press: Any) -> bool:
    """Whether a press chooses the same entries in whatever order they lie."""
    if isinstance(press, TRANSPARENT):
        return orderless(press.press)
    return type(press) in ORDERLESS


def _reads_weights(press: Any) -> bool:
    return _any(press, (kvpress.ObservedAttentionPress,))


def _any(press: Any, kinds: tuple[type, ...]) -> bool:
    return any(isinstance(part, kinds) for part in parts_of(press))
