"""`kvx.guard.guarded`: what model.generate would return, with a controller inside."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import kvpress
import pytest
import torch
from hydra import initialize_config_dir
from kvpress import ChunkKVPress, KnormPress, SnapKVPress
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
    StoppingCriteriaList,
    TextStreamer,
)

from kvx.cli import compose
from kvx.config import conf_dir, package_dir
from kvx.controller_config import ControllerConfig, ControllerKind
from kvx.errors import UserError
from kvx.guard import guarded
from kvx.guard.events import GuardEvent

NEW = 24
PAD = 0
PRESSES: dict[str, Callable[[], Any]] = {
    "knorm": lambda: KnormPress(0.7),
    "snapkv": lambda: SnapKVPress(0.7, window_size=8),
    "streaming": lambda: kvpress.StreamingLLMPress(0.7),
    "expected_attention": lambda: kvpress.ExpectedAttentionPress(0.7),
    "pyramidkv": lambda: kvpress.PyramidKVPress(0.5, window_size=8),
    "chunkkv": lambda: ChunkKVPress(SnapKVPress(0.6, window_size=8), chunk_length=5),
    "rerotated": lambda: kvpress.KeyRerotationPress(KnormPress(0.5)),
    "nothing": lambda: KnormPress(0.0),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(package_dir() / "assets" / "tiny_recall").eval()


@dataclass
class Wrapping(kvpress.BasePress):  # type: ignore[misc]
    """A wrapper of somebody's own."""

    press: Any
    compression_ratio: float = 0.5


def a_prompt(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 300, (1, n), generator=torch.Generator().manual_seed(seed))


def options(ids: torch.Tensor, **more: Any) -> dict[str, Any]:
    given = {
        "attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "do_sample": False,
        "eos_token_id": None, "pad_token_id": PAD,
    }  # fmt: skip
    return {"input_ids": ids, **given, **more}


def gate(nats: float) -> ControllerConfig:
    return ControllerConfig(name="gated", kind=ControllerKind.gate, prefill_gate_nats=nats)


def chance() -> ControllerConfig:
    return ControllerConfig(
        name="chance", kind=ControllerKind.random, rate=0.3, cooldown=2, j=1, rollback_tokens=4
    )


@pytest.mark.parametrize("name", PRESSES)
def test_without_a_controller_it_is_kvpress_token_for_token(model: Any, name: str) -> None:
    for n in (60, 91):
        ids, press = a_prompt(n, seed=n), PRESSES[name]()
        with press(model):
            theirs = model.generate(**options(ids))
        assert torch.equal(guarded(model, PRESSES[name](), "none").generate(**options(ids)), theirs)


def test_attention_weights_come_from_an_eager_model() -> None:
    eager = AutoModelForCausalLM.from_pretrained(
        package_dir() / "assets" / "tiny_recall", attn_implementation="eager"
    )
    ids, press = a_prompt(70), kvpress.ObservedAttentionPress(0.5)
    with press(eager):
        theirs = eager.generate(**options(ids, output_attentions=True))
    assert torch.equal(guarded(eager, press, "none").generate(**options(ids)), theirs)
    assert eager.config._attn_implementation == "eager"


@pytest.mark.parametrize("shadow", ["host", "recompute"])
@pytest.mark.parametrize("name", [name for name in PRESSES if name != "nothing"])
def test_relaxed_from_the_start_is_the_model_itself(model: Any, name: str, shadow: str) -> None:
    ids = a_prompt(80)
    safe = guarded(model, PRESSES[name](), "always_safe", shadow=shadow)
    assert torch.equal(safe.generate(**options(ids)), model.generate(**options(ids)))
    assert [event.action for event in safe.events[0]] == ["raise"]
    assert (safe.guard[0].bytes_host > 0) is (shadow == "host")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("controller", ["none", "balanced", chance(), gate(0.01)])
def test_a_padded_batch_is_its_single_runs(model: Any, side: str, controller: Any) -> None:
    lengths = (90, 41, 66)
    prompts = [a_prompt(n, seed=n) for n in lengths]
    ids = torch.full((3, 90), PAD)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        n = prompt.shape[1]
        where = slice(90 - n, 90) if side == "left" else slice(0, n)
        ids[row, where], mask[row, where] = prompt[0], 1
    together = guarded(model, KnormPress(0.75), controller)
    out = together.generate(**options(ids, attention_mask=mask))
    assert torch.equal(out[:, :90], ids)
    alone = guarded(model, KnormPress(0.75), controller)
    for row, prompt in enumerate(prompts):
        if isinstance(controller, ControllerConfig) and controller.kind is ControllerKind.random:
            continue  # drawn by place in the batch
        single = alone.generate(**options(prompt))
        assert out[row, 90:].tolist() == single[0, prompt.shape[1] :].tolist()
        assert done(together.events[row]) == done(alone.events[0])
    if controller not in ("none", "balanced"):
        assert any(together.events)


def done(events: list[GuardEvent]) -> list[tuple[Any, ...]]:
    return [(e.token, e.mode, e.action, e.budget_after, e.n_kept, e.dropped_ids) for e in events]


def test_what_ends_is_padded(model: Any) -> None:
    prompts = [a_prompt(50, seed=seed) for seed in range(4)]
    ids = torch.cat(prompts)
    free = guarded(model, KnormPress(0.5), "none").generate(**options(ids))
    stop = int(free[0, 53])  # a token that the first response comes to
    out = guarded(model, KnormPress(0.5), "none").generate(**options(ids, eos_token_id=[stop, 299]))
    n_new = out.shape[1] - 50
    for row in range(4):
        new, before = out[row, 50:].tolist(), free[row, 50 : 50 + n_new].tolist()
        ends = before.index(stop) + 1 if stop in before else n_new
        assert new == before[:ends] + [PAD] * (n_new - ends)
    assert (out[0, 50:] == PAD).any() or n_new <= 4


def test_it_is_a_custom_generate_of_transformers(model: Any) -> None:
    ids = a_prompt(64)
    guard = guarded(model, KnormPress(0.75), chance())
    own = guard.generate(**options(ids))
    events = done(guard.events[0])
    assert events
    config = GenerationConfig(max_length=64 + NEW, do_sample=False, pad_token_id=PAD)
    model_eos, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    try:
        out = model.generate(
            ids, generation_config=config, custom_generate=guard, return_dict_in_generate=True
        )
    finally:
        model.generation_config.eos_token_id = model_eos
    assert torch.equal(out.sequences, own)
    assert done(out.guard[0].events) == events == done(guard.events[0])
    assert out.guard[0].decoded_tokens == NEW + sum(len(e[-1]) for e in events)


def test_sampling_follows_its_generator_or_torchs(model: Any) -> None:
    ids = a_prompt(64)
    guard = guarded(model, kvpress.RandomPress(0.5), "reactive")
    sampled = options(ids, do_sample=True, temperature=1.5, top_k=40, top_p=0.95)

    def seeded(seed: int) -> list[int]:
        out = guard.generate(**sampled, generator=torch.Generator().manual_seed(seed))
        return list(out[0].tolist())

    def global_seed(seed: int) -> list[int]:
        torch.manual_seed(seed)
        return list(guard.generate(**sampled)[0].tolist())

    assert seeded(1) == seeded(1) != seeded(2)
    assert global_seed(3) == global_seed(3) != global_seed(4)


def test_the_gate_compares_where_the_caches_first_differ(model: Any) -> None:
    """The probe is what transformers and kvpress themselves find after the first token."""
    ids, press = a_prompt(90, seed=5), KnormPress(0.9)
    guard = guarded(model, press, gate(0.0), ladder=[])
    out = guard.generate(**options(ids))
    cache, full = DynamicCache(), DynamicCache()
    with torch.inference_mode():
        with press(model):
            first = model(ids, past_key_values=cache).logits[0, -1].argmax()[None, None]
        model(ids, past_key_values=full)
        at = {"position_ids": torch.tensor([[90]])}
        q = model(first, past_key_values=cache, **at).logits[0, -1].log_softmax(-1)
        p = model(first, past_key_values=full, **at).logits[0, -1].log_softmax(-1)
    (event,) = guard.events[0]
    assert event.probe_nats == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3)
    assert (event.action, event.reason, event.n_kept) == ("raise", "gate", 1)
    assert event.dropped_ids == [int(q.argmax())]
    assert torch.equal(out, model.generate(**options(ids)))


@pytest.mark.parametrize("shadow", ["host", "recompute"])
def test_the_gate_goes_up_its_ladder_as_far_as_it_must(model: Any, shadow: str) -> None:
    """It ends where the probe is below, and the response is that of the press at that budget."""
    reached = set()
    for seed in range(6):
        ids = a_prompt(90, seed=seed)
        guard = guarded(model, KnormPress(0.9), gate(0.05), ladder=[0.3, 0.6], shadow=shadow)
        out = guard.generate(**options(ids))
        events = guard.events[0]
        assert [e.budget_after for e in events] == [0.3, 0.6, 1.0][: len(events)]
        assert all(e.probe_nats is not None and e.probe_nats >= 0.05 for e in events)
        budget = events[-1].budget_after if events else 0.1
        at_once = guarded(model, KnormPress(1.0 - budget), "none").generate(**options(ids))
        assert torch.equal(out, at_once)
        reached.add(budget)
    assert len(reached) > 1


def test_an_end_at_the_second_token_is_judged_too(model: Any) -> None:
    for seed in (24, 28, 30, 38):
        ids = a_prompt(90, seed=seed)
        given = options(ids, max_new_tokens=3)
        compressed = guarded(model, KnormPress(0.9), "none").generate(**given)
        full = model.generate(**given)
        stop = int(compressed[0, 91])
        assert stop not in full[0, 90:].tolist()
        given["eos_token_id"] = stop
        out = guarded(model, KnormPress(0.9), gate(0.0)).generate(**given)
        assert torch.equal(out, full)


def test_without_a_shadow_nothing_is_done(model: Any) -> None:
    ids = a_prompt(64)
    watched = guarded(model, KnormPress(0.8), "always_safe", shadow="none")
    plain = guarded(model, KnormPress(0.8), "none").generate(**options(ids))
    assert torch.equal(watched.generate(**options(ids)), plain)
    assert [event.action for event in watched.events[0]] == ["alarm"]
    assert watched.guard[0].bytes_host == 0


def test_model_and_press_are_as_before(model: Any) -> None:
    press = ChunkKVPress(SnapKVPress(0.75, window_size=8), chunk_length=5)
    before, config = repr(press), model.config.to_dict()
    ids, plain = a_prompt(64), model.generate(**options(a_prompt(64)))
    guard = guarded(model, press, "balanced")
    guard.generate(**options(ids))
    with pytest.raises(ValueError, match="refuses prompt 0 of 5 tokens"):
        guard.generate(**options(a_prompt(5)))
    assert repr(press) == before
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == "sdpa"
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(model.generate(**options(ids)), plain)


def test_in_bfloat16(model: Any) -> None:
    half = AutoModelForCausalLM.from_pretrained(
        package_dir() / "assets" / "tiny_recall", dtype=torch.bfloat16
    )
    ids = a_prompt(80)
    safe = guarded(half, SnapKVPress(0.75, window_size=8), "always_safe")
    assert torch.equal(safe.generate(**options(ids)), half.generate(**options(ids)))


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
        (kvpress.ThinKPress(0.5), "cannot be raised"),
        (kvpress.SimLayerKVPress(), "no compression_ratio"),
        ("snapkv", "is no kvpress press object"),
        (0.5, "is no kvpress press object"),
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
        ({"controller": "random"}, "needs a rate"),
        ({"controller": ControllerConfig(name="mine", k=0)}, "controller.k=0"),
        ({"controller": gate(-1.0)}, "prefill_gate_nats"),
        ({"shadow": "disk"}, "shadow=disk: must be one of host, recompute, none"),
        ({"ladder": [0.5, 0.25]}, "guard.ladder"),
        ({"max_interventions": 0}, "guard.max_interventions"),
        ({"hazard_model": "nowhere"}, "nowhere: no hazard model"),
    ],
)
def test_wrong_settings(model: Any, arguments: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        guarded(model, KnormPress(0.5), **arguments)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_be_guarded() -> None:
    other = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=16))
    with pytest.raises(ValueError, match="GPT2LMHeadModel: kvpress does not support it"):
        guarded(other, KnormPress(0.5))
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 16}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    sliding = MistralForCausalLM(MistralConfig(**sizes, **heads, sliding_window=4))
    with pytest.raises(ValueError, match="has sliding-window attention"):
        guarded(sliding, KnormPress(0.5))


@pytest.mark.parametrize(
    "given",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"repetition_penalty": 1.2},
        {"no_repeat_ngram_size": 3},
        {"min_new_tokens": 5},
        {"max_time": 1.0},
        {"streamer": TextStreamer(None)},
        {"logits_processor": [lambda ids, scores: scores]},
        {"stopping_criteria": StoppingCriteriaList([lambda ids, scores: True])},
        {"past_key_values": DynamicCache()},
        {"cache_implementation": "quantized"},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"inputs_embeds": torch.zeros(1, 4, 64)},
        {"output_logits": True},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=lambda given: "-".join(map(str, given)),
)
def test_options_that_would_not_be_honoured(model: Any, given: dict[str, Any]) -> None:
    """Refused by name, given as arguments, and in a configuration where they can be."""
    name, ids = next(iter(given)), a_prompt(40)
    guard = guarded(model, KnormPress(0.5))
    with pytest.raises(ValueError, match=f"^{name}.*does not work under a guard") as caught:
        guard.generate(**options(ids, **given))
    assert "\n" not in str(caught.value)
    if hasattr(GenerationConfig(), name) and name != "num_return_sequences":
        config = GenerationConfig(**given, max_new_tokens=4, pad_token_id=PAD)
        with pytest.raises(ValueError, match=f"^{name}.*does not work under a guard"):
            guard.generate(ids, generation_config=config)


def test_options_that_transformers_prepares(model: Any) -> None:
    guard, ids = guarded(model, KnormPress(0.5)), a_prompt(40)
    sampled = options(ids, do_sample=True, custom_generate=guard)
    with pytest.raises(ValueError, match=r"logits_processor \(MinPLogitsWarper\)"):
        model.generate(**{**sampled, "min_p": 0.1})
    cache = DynamicCache()
    model.generate(ids[:, :8], past_key_values=cache, max_new_tokens=2)
    with pytest.raises(ValueError, match="past_key_values"):
        model.generate(**options(ids, custom_generate=guard), past_key_values=cache)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1] = 0
    with pytest.raises(ValueError, match="row 1 is padding only"):
        guard.generate(**options(ids.repeat(2, 1), attention_mask=mask))
    other = AutoModelForCausalLM.from_config(model.config)
    with pytest.raises(ValueError, match="guarded for another model"):
        other.generate(**options(ids, custom_generate=guard))


def test_importing_the_guard_imports_no_torch() -> None:
    code = (
        "import sys, kvx.guard; print(sorted({'torch', 'transformers', 'hydra'} & {*sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_controllers_are_those_of_the_command_line(model: Any) -> None:
    """Also where somebody's own Hydra is at work."""
    names = [path.stem for path in (conf_dir() / "controller").glob("*.yaml")]
    composed = {name: compose(f"controller={name}").controller for name in names}
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        for name in set(names) - {"random"}:
            found = guarded(model, KnormPress(0.5), name).controller
            card_gate = found.prefill_gate_nats if composed[name].card_gate else None
            asked = composed[name].prefill_gate_nats or card_gate  # of the model's card
            assert found == replace(composed[name], prefill_gate_nats=asked)
