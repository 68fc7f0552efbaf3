"""A run leaves the model as it was: hooks, buffers, attributes, configuration, weights."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kvpress import KnormPress, SnapKVPress

import kvx
from kvx.config.press_choices import PressNeed
from kvx.config.schema import PressConfig
from kvx.engines.base import PointWork, Response
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.engines.kvpress.model import LoadedModel, _loaded
from kvx.engines.kvpress.prefill import prefill
from kvx.engines.kvpress.press_object import ObjectPress
from kvx.engines.kvpress.prompt_row import PromptRow
from kvx.engines.kvpress.streams import RandomStream
from kvx.points import Request
from tests.families import make
from tests.guarding import a_prompt, tiny_model
from tests.presses import EVERYWHERE
from tests.test_engine import answers, recall


@pytest.fixture(autouse=True)
def _loaded_anew() -> Iterator[None]:
    """No other test has used the model."""
    _loaded.clear()
    yield
    _loaded.clear()


def state(model: Any) -> dict[str, Any]:
    """Everything a module of the model could keep, by where it is."""
    found: dict[str, Any] = {"config": model.config.to_dict()}
    found["attention"] = model.config._attn_implementation
    found["generation"] = model.generation_config.to_dict()
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            where = f"{name or 'model'}.{key}"
            if key in ("_parameters", "_buffers"):
                for tensor_name, tensor in value.items():
                    found[f"{where}.{tensor_name}"] = None if tensor is None else tensor.clone()
            elif isinstance(value, dict):
                found[where] = list(value)  # names of submodules, ids of hooks
            elif key != "config":
                found[where] = repr(value)
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, torch.Tensor):
            return isinstance(b, torch.Tensor) and torch.equal(a, b)
        return bool(a == b)

    keys = before.keys() | after.keys()
    absent = object()
    return sorted(k for k in keys if not same(before.get(k, absent), after.get(k, absent)))


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("press", EVERYWHERE)
def test_no_shipped_press_leaves_anything_on_the_model(
    tmp_path: Path, press: str, share: bool
) -> None:
    budget = () if press == "none" else ("budget=0.5",)
    work = recall(tmp_path, f"press={press}", *budget, f"engine.share={share}".lower(), n=1)
    model = KVPressEngine(work.point.config).loaded.model
    before = state(model)
    KVPressEngine(work.point.config).check([work.point])
    assert differences(before, state(model)) == []
    for response in answers(work):
        assert response.error_message is None
    assert differences(before, state(model)) == []


@dataclass
class FailsMidway(KnormPress):  # type: ignore[misc]
    """Leaves something of each kind behind, and fails at the second layer."""

    def compress(self, module: Any, *args: Any) -> Any:
        module.left_behind = torch.nn.Linear(2, 2)
        module.masked_key_indices = "wrong"
        module.q_proj.register_forward_hook(lambda *_: None)
        module.config.head_dim = 7
        module.config._attn_implementation = "eager"
        module.k_proj.weight = torch.nn.Parameter(torch.zeros_like(module.k_proj.weight))
        if module.layer_idx == 1:
            raise RuntimeError("in the middle")
        return super().compress(module, *args)


@pytest.mark.parametrize("needs", [[], [PressNeed.changes_forward], [PressNeed.masks]])
def test_a_press_that_fails_leaves_nothing_on_the_model(
    tmp_path: Path, needs: list[PressNeed]
) -> None:
    work = recall(tmp_path, "press=knorm", "budget=0.5", n=1)
    press = PressConfig(name="fails", method={"_target_": f"{__name__}.FailsMidway"}, needs=needs)
    point = replace(work.point, config=replace(work.point.config, press=press))
    requests = tuple((Request(point, r.entry), example) for r, example in work.requests)
    engine = KVPressEngine(point.config)
    before = state(engine.loaded.model)
    (response,) = engine.generate([PointWork(point, requests)])
    assert isinstance(response, Response)
    assert "in the middle" in (response.error_message or "")
    assert differences(before, state(engine.loaded.model)) == []


@dataclass
class ChangesBefore(KnormPress):  # type: ignore[misc]
    """Changes the model when it is told of it, before the prompt passes."""

    def post_init_from_model(self, model: Any) -> None:
        model.config.head_dim = 7
        model.model.layers[0].self_attn.of_the_press = "kept"
        model.lm_head.register_forward_hook(lambda *_: None)


def test_what_a_press_does_when_it_is_told_of_the_model_is_undone() -> None:
    model = make("llama")
    loaded = LoadedModel(model, None, model.device, frozenset())
    presses = [ObjectPress(press(0.5)) for press in (KnormPress, ChangesBefore)]
    rows = [PromptRow(press, 20, RandomStream(0, loaded.devices)) for press in presses]
    before = state(model)
    with torch.inference_mode():
        prefill(loaded, list(range(5, 45)), rows, 2, alone=False)
    assert [row.error for row in rows] == [None, None]
    assert differences(before, state(model)) == []


class CannotBeMade:
    method_key = None
    reads_weights = False

    def build(self) -> Any:
        raise RuntimeError("no such file")

    def at(self, budget: float) -> "CannotBeMade":
        return self


def test_a_press_that_cannot_be_made_leaves_nothing_of_the_others_behind() -> None:
    """Presses before it had the model's own queries served, on a family where kvpress's differ."""
    model = make("qwen3_moe")
    loaded = LoadedModel(model, None, model.device, frozenset())
    presses = [ObjectPress(SnapKVPress(0.5, window_size=8)), CannotBeMade()]
    rows = [PromptRow(press, 20, RandomStream(0, loaded.devices)) for press in presses]
    attention = SnapKVPress.compute_window_attention
    before = state(model)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="no such file"):
        prefill(loaded, list(range(5, 45)), rows, 2, alone=False)
    assert SnapKVPress.compute_window_attention is attention
    assert differences(before, state(model)) == []


def test_what_a_callers_own_hooks_keep_on_a_model_stays() -> None:
    """`kvx.guarded` works on the caller's model."""
    model = tiny_model()
    attention = model.model.layers[0].self_attn

    def note(module: Any, _: Any, kwargs: Any, __: Any) -> None:
        module.passed = [*getattr(module, "passed", []), kwargs["hidden_states"].shape[1]]

    guarded = kvx.guarded(model, press=KnormPress(0.5))
    attention.passed = []
    with attention.register_forward_hook(
        note, with_kwargs=True
    ):  # other tests have this model, too
        guarded.generate(a_prompt(30), max_new_tokens=3)
    assert attention.passed[0] >= 29  # the prefill, whatever passes then
    assert len(attention.passed) >= 3
