"""`kvx.guarded`: what model.generate would return, with a controller inside."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import kvpress
import pytest
import torch
from kvpress import ChunkKVPress, KnormPress, SnapKVPress
from transformers import (
    AutoModelForCausalLM,
    DynamicCache,
    GenerationConfig,
)

from kvx.config.folders import package_dir
from kvx.engines.kvpress.transformers_versions import pressing
from kvx.guard import guarded
from kvx.guard.controllers import Random
from tests.guarding import NEW, PAD, a_prompt, done, gate, options, tiny_model

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


@pytest.fixture
def model() -> Any:
    return tiny_model()


def chance() -> Random:
    return Random(name="chance", rate=0.3, cooldown=2, j=1, rollback_tokens=4)


@pytest.mark.parametrize("name", PRESSES)
def test_without_a_controller_it_is_kvpress_token_for_token(model: Any, name: str) -> None:
    for n in (60, 91):
        ids, press = a_prompt(n, seed=n), PRESSES[name]()
        with pressing(model, press):
            theirs = model.generate(**options(ids))
        assert torch.equal(guarded(model, PRESSES[name](), "none").generate(**options(ids)), theirs)


def test_attention_weights_come_from_an_eager_model() -> None:
    eager = AutoModelForCausalLM.from_pretrained(
        package_dir() / "assets" / "tiny_recall", attn_implementation="eager"
    )
    ids, press = a_prompt(70), kvpress.ObservedAttentionPress(0.5)
    with pressing(eager, press):
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
        if isinstance(controller, Random):
            continue  # drawn by place in the batch
        single = alone.generate(**options(prompt))
        assert out[row, 90:].tolist() == single[0, prompt.shape[1] :].tolist()
        assert done(together.events[row]) == done(alone.events[0])
    if controller not in ("none", "balanced"):
        assert any(together.events)


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
        with pressing(model, press):
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


def test_budgets_are_told_as_they_were_asked_for(model: Any) -> None:
    ids = a_prompt(90)
    for ratio, budget in ((0.8, 0.2), (0.7, 0.3), (0.9, 0.1)):
        guard = guarded(model, KnormPress(ratio), "none")
        out = guard.generate(**options(ids, max_new_tokens=40, return_dict_in_generate=True))
        assert out.guard[0].mean_budget == budget
        safe = guarded(model, KnormPress(ratio), "always_safe")
        safe.generate(**options(ids))
        assert [event.budget_before for event in safe.events[0]] == [budget]


def test_importing_the_guard_imports_no_torch() -> None:
    code = (
        "import sys, kvx.guard; print(sorted({'torch', 'transformers', 'hydra'} & {*sys.modules}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
