"""The arguments of `kvx.guarded` itself: presses, models, controllers and settings."""

from dataclasses import dataclass, replace
from typing import Any, cast

import kvpress
import numpy as np
import pytest
import torch
import transformers
from hydra import initialize_config_dir
from kvpress import KnormPress
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from kvx.cli.command import compose
from kvx.config.controller import OperatingPoint
from kvx.config.folders import conf_dir
from kvx.config.guard import Shadow
from kvx.engines.kvpress.transformers_versions import pressing
from kvx.errors import ArgumentError
from kvx.guard import guarded
from kvx.guard.controllers import Hazard, Reactive
from tests.guarding import a_prompt, done, gate, options, tiny_model


@pytest.fixture
def model() -> Any:
    return tiny_model()


@dataclass
class Wrapping(kvpress.BasePress):  # type: ignore[misc]
    """A wrapper of somebody's own."""

    press: Any
    compression_ratio: float = 0.5


@pytest.mark.parametrize(
    ("press", "why"),
    [
        (kvpress.AdaKVPress(KnormPress(0.5)), "hides entries"),
        (Wrapping(kvpress.AdaKVPress(KnormPress(0.5))), "hides entries"),
        (kvpress.DMSPress(KnormPress(), 0.5), "hides entries"),
        (kvpress.KVzipPress(0.5), "hides entries"),
        (kvpress.ComposedPress([KnormPress(0.5)]), "forward_hook of its own"),
        (kvpress.FinchPress(0.5), "__call__ of its own"),
        (kvpress.DecodingPress(KnormPress()), "drops what was generated"),
        (kvpress.ThinKPress(0.5), "cannot be raised .*; use an evicting press such as SnapKVPress"),
        (KnormPress, "is not a kvpress press object"),
        (
            torch.nn.Sequential(torch.nn.Linear(2, 2)),
            r"press=\(Sequential\): is not a kvpress press",
        ),
        (kvpress.SimLayerKVPress(), "no compression_ratio"),
        ("snapkv", "is not a kvpress press object"),
        (0.5, "is not a kvpress press object"),
    ],
)
def test_a_press_that_cannot_be_guarded(model: Any, press: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        guarded(model, press)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"controller": "patient"}, "controller=patient: there is aggressive, always_safe"),
        ({"controller": "random"}, "controller.rate: needs a value"),
        ({"controller": Reactive(name="mine", k=0)}, "controller.k=0"),
        ({"controller": gate(-1.0)}, "prefill_gate_nats"),
        ({"shadow": "disk"}, "shadow=disk: must be one of host, recompute, none"),
        ({"controller": None}, '^controller=None: must be a name .*; without one: "none"$'),
        ({"controller": 3}, "^controller=3: must be a name"),
        ({"controller": ["balanced"]}, "^controller=.'balanced'.: must be a name"),
        ({"controller": torch.nn.Sequential(torch.nn.ReLU())}, "^controller=.Sequential.: must be"),
        (
            {"controller": Hazard(name="x", operating_point="foo")},  # type: ignore[arg-type]
            "^controller.operating_point='foo': .* expected one of .conservative, balanced",
        ),
        (
            {"controller": Reactive(name="x", k="many")},  # type: ignore[arg-type]
            "^controller.k='many': ",
        ),
        ({"shadow": ["host"]}, "^shadow=.'host'.: must be one of"),
        ({"ladder": [0.5, 0.25]}, "^ladder=.*must be ascending"),
        ({"ladder": "0.5"}, "^ladder='0.5': must be a list of ascending budgets"),
        ({"ladder": ["0.5"]}, "^ladder=.*must be a list of ascending budgets"),
        ({"ladder": 0.5}, "^ladder=0.5: must be a list of ascending budgets"),
        ({"ladder": None}, "^ladder=None: must be a list of ascending budgets"),
        ({"max_interventions": 0}, "^max_interventions=0: must be at least 1"),
        ({"max_interventions": "4"}, "^max_interventions='4': must be a whole number"),
        ({"max_interventions": 1.5}, "^max_interventions=1.5: must be a whole number"),
        ({"let_go": "no"}, "^let_go='no': must be True or False"),
        ({"max_interventions": True}, "^max_interventions=True: must be a whole number"),
        ({"tokenizer": "SmolLM"}, "^tokenizer='SmolLM': must be a tokenizer object"),
        ({"hazard_model": "nowhere"}, "nowhere: no hazard model"),
        ({"hazard_model": 5}, "^hazard_model=5: must be a directory"),
    ],
)
def test_wrong_settings(model: Any, arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        guarded(model, KnormPress(0.5), **arguments)
    assert isinstance(caught.value, ArgumentError)
    assert "\n" not in str(caught.value)


def test_settings_may_be_numpys_enums_and_names_of_enums(model: Any) -> None:
    named = Hazard(operating_point="balanced")  # type: ignore[arg-type]
    assert guarded(model, KnormPress(0.5), named).controller == Hazard(
        name="custom", operating_point=OperatingPoint.balanced
    )
    ids, own = a_prompt(90, seed=5), gate(0.0)
    plain = guarded(model, KnormPress(0.9), own, ladder=[0.3], max_interventions=1)
    other = guarded(
        model, KnormPress(0.9), replace(own, prefill_gate_nats=np.float64(0.0)),
        ladder=list(np.array([0.3])), max_interventions=cast(int, np.int64(1)), shadow=Shadow.host,
    )  # fmt: skip
    assert torch.equal(plain.generate(**options(ids)), other.generate(**options(ids)))
    assert done(plain.events[0]) == done(other.events[0]) != []


@pytest.mark.parametrize("given", ["SmolLM", 5, None, torch.nn.Linear(2, 2)])
def test_a_model_is_an_object_of_transformers(given: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^model=\w+: is not a transformers model") as caught:
        guarded(given, KnormPress(0.5))
    assert "\n" not in str(caught.value)


SIZES = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 32, "vocab_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
OFFERED = ["Llama", "Mistral", "Phi3", "Qwen2", "Qwen3"]


def test_models_that_cannot_be_guarded() -> None:
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16))
    with pytest.raises(ArgumentError, match=r"^model=GPT2LMHeadModel: cannot be guarded: it has"):
        guarded(other, KnormPress(0.5))


def test_a_model_that_sees_pictures_can_be_guarded() -> None:
    sight = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    torch.manual_seed(0)
    types = {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2}
    config = Gemma3Config(text_config={**SIZES, **types}, vision_config=sight)
    seeing = Gemma3ForConditionalGeneration(config).eval()
    ids = torch.randint(5, 60, (1, 40), generator=torch.Generator().manual_seed(0))
    safe = guarded(seeing, KnormPress(0.5), "always_safe")
    assert torch.equal(safe.generate(**options(ids)), seeing.generate(**options(ids)))


@pytest.mark.parametrize("name", OFFERED)
def test_models_that_are_offered_work(name: str) -> None:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, sliding_window=None)
    own = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    ids = torch.randint(5, 60, (1, 40), generator=torch.Generator().manual_seed(0))
    safe = guarded(own, KnormPress(0.5), "always_safe")
    assert torch.equal(safe.generate(**options(ids)), own.generate(**options(ids)))
    with pressing(own, KnormPress(0.5)):
        theirs = own.generate(**options(ids))
    assert torch.equal(guarded(own, KnormPress(0.5), "none").generate(**options(ids)), theirs)


def test_a_model_of_windows_cannot_be_guarded() -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 16}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    sliding = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=4))
    with pytest.raises(ValueError, match="has no layer of full attention"):
        guarded(sliding, KnormPress(0.5))


def test_controllers_are_those_of_the_command_line(model: Any) -> None:
    """Also where somebody's own Hydra is at work."""
    names = [path.stem for path in (conf_dir() / "controller").glob("*.yaml")]
    composed = {name: compose(f"controller={name}").controller for name in names}
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        for name in set(names) - {"random"}:
            found = guarded(model, KnormPress(0.5), name).controller
            expected = composed[name]
            if isinstance(expected, Hazard):  # its gate is that of the model's card
                expected = replace(expected, prefill_gate_nats=found.prefill_gate_nats)
            assert found == expected
