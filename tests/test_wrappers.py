"""Presses around presses: each is what kvpress's own pipeline makes of it, or is refused."""

from collections.abc import Callable
from typing import Any

import kvpress
import pytest

from kvx.engines.base import PointWork, Response
from tests.test_engine import answers, assert_equals_kvpress, recall

Made = Callable[[float], Any]  # kvpress's own press, at a compression ratio


def _snapkv(ratio: float) -> Any:
    return kvpress.SnapKVPress(ratio, window_size=8)


def _composed(ratio: float) -> Any:
    think = kvpress.ThinKPress(key_channel_compression_ratio=0.25)
    return kvpress.ComposedPress([_snapkv(ratio), think])


SNAPKV = ("press.inner=snapkv", "press.inner.window_size=8")
THEIRS: dict[str, tuple[tuple[str, ...], Made]] = {
    "adakv": (("press.inner=knorm",), lambda r: kvpress.AdaKVPress(kvpress.KnormPress(r))),
    "criticalkv": (SNAPKV, lambda r: kvpress.CriticalKVPress(_snapkv(r))),
    "critical_adakv": (SNAPKV, lambda r: kvpress.CriticalAdaKVPress(_snapkv(r))),
    "block": ((), lambda r: kvpress.BlockPress(kvpress.KeyDiffPress(r), block_size=16)),
    "chunk": ((), lambda r: kvpress.ChunkPress(kvpress.KeyDiffPress(r), chunk_length=32)),
    "chunkkv": (
        ("press.inner=lagkv", "press.inner.lag_size=16"),
        lambda r: kvpress.ChunkKVPress(kvpress.LagKVPress(r, lag_size=16)),
    ),
    "key_rerotation": (SNAPKV, lambda r: kvpress.KeyRerotationPress(_snapkv(r))),
    "merging": (SNAPKV, lambda r: kvpress.MergingPress(_snapkv(r))),
    "think": ((), lambda r: kvpress.ThinKPress(2 * r)),
    "dms": (
        ("press.inner=knorm", "press.method.threshold=-8", "press.method.sliding_window_size=16"),
        lambda r: kvpress.DMSPress(kvpress.KnormPress(), threshold=-8, sliding_window_size=16),
    ),
    "composed": (
        ("press.inner=[snapkv,think]", "press.inner.snapkv.window_size=8",
         "press.inner.think.key_channel_compression_ratio=0.25"),
        _composed,
    ),
}  # fmt: skip
OF_WRAPPER = {"block": ("press.method.block_size=16",), "chunk": ("press.method.chunk_length=32",)}
BUDGETS = {"think": "0.75"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[PointWork, list[Response]]]:
    """Every wrapper in one run of the engine."""
    folder = tmp_path_factory.mktemp("wrappers")
    work = {
        press: recall(
            folder, f"press={press}", *inner, *OF_WRAPPER.get(press, ()),
            f"budget={BUDGETS.get(press, '0.5')}",
        )
        for press, (inner, _) in THEIRS.items()
    }  # fmt: skip
    found = answers(*work.values())
    return {
        press: (item, [r for r in found if r.request.point.dir == item.point.dir])
        for press, item in work.items()
    }


@pytest.mark.parametrize("press", THEIRS)
def test_texts_equal_kvpress_pipeline(
    run: dict[str, tuple[PointWork, list[Response]]], press: str
) -> None:
    work, responses = run[press]
    assert not [r.error_message for r in responses if r.error_message]
    assert_equals_kvpress(work, responses, lambda r: THEIRS[press][1](r))
