"""Which layers a press compresses, and models in which no layer has full attention."""

from collections.abc import Sequence
from typing import Any

import kvpress
import pytest
import torch
from families import make

from kvx.engines.kvpress.cache import Bucket
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.prefill import prefill
from kvx.engines.kvpress.press_object import ObjectPress
from kvx.engines.kvpress.prompt_row import PromptRow, RowPress, kv_use
from kvx.engines.kvpress.streams import RandomStream

PROMPT, ROOM = 200, 4


def loaded(name: str) -> LoadedModel:
    model = make(name)
    return LoadedModel(model, None, model.device, frozenset())


def ids() -> list[int]:
    draw = torch.Generator().manual_seed(3)
    return torch.randint(5, 200, (PROMPT,), generator=draw).tolist()


def row(model: LoadedModel, press: RowPress | None, kept: int, **more: Any) -> PromptRow:
    return PromptRow(press, kept, RandomStream(0, model.devices), **more)


def entries(buckets: Sequence[Bucket]) -> list[int]:
    return [layer.end for bucket in buckets for layer in bucket._layers.values()]


@pytest.mark.parametrize("alone", [False, True])
@torch.inference_mode()
def test_windows_are_the_full_cache_of_a_model_of_windows(alone: bool) -> None:
    model = loaded("mistral_window")
    full = row(model, None, PROMPT)
    prefill(model, ids(), [full], ROOM, alone)
    assert kv_use(full, PROMPT).entries_effective == PROMPT


@pytest.mark.parametrize("press", [kvpress.KnormPress(), kvpress.PyramidKVPress(window_size=16)])
@pytest.mark.parametrize("name", ["gemma3_text", "mistral_window"])
@torch.inference_mode()
def test_windows_are_compressed_where_that_is_asked(name: str, press: Any) -> None:
    model = loaded(name)
    everywhere = row(model, ObjectPress(press).at(0.25), 50, everywhere=True)
    prefill(model, ids(), [everywhere], ROOM, alone=False)
    assert everywhere.error is None
    assert len(everywhere.entries) == len(layers_of(model.model).cached)
    assert sum(everywhere.entries) / len(everywhere.entries) == pytest.approx(50, abs=1)
    longer = row(model, ObjectPress(press).at(0.25), 75, everywhere=True)
    prefill(model, [*ids(), *ids()], [longer], ROOM, alone=False)
    assert "press.layers=all: layer" in str(longer.error)
