"""A loop that compression plants, and what is left of it under a guard."""

import pytest
import torch
from kvpress import KnormPress
from transformers import AutoModelForCausalLM

from kvx.config import package_dir
from kvx.guard import guarded
from kvx.guard.detectors import find_loop
from kvx.guard.events import Guarded


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    found: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        package_dir() / "assets" / "tiny_recall"
    )
    return found


def say(
    model: torch.nn.Module, ids: torch.Tensor, controller: str, **settings: object
) -> tuple[list[list[int]], list[Guarded]]:
    """What follows each of the prompts `ids` [n, tokens], and what was done to it."""
    guard = guarded(model, KnormPress(0.8), controller, **settings)
    out = guard.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False,
        eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return out[:, ids.shape[1] :].tolist(), guard.guard


def test_planted_loops_are_cured(model: torch.nn.Module) -> None:
    """Prompts that loop at 20% of the cache and not with all of it."""
    ids = torch.randint(5, 300, (120, 90), generator=torch.Generator().manual_seed(0))
    compressed, full = (say(model, ids, name)[0] for name in ("none", "always_safe"))
    loops = [
        find_loop(c) is not None and find_loop(f) is None
        for c, f in zip(compressed, full, strict=True)
    ]
    planted = ids[torch.tensor(loops)]
    assert len(planted) >= 3
    cured, done = say(model, planted, "reactive")
    for tokens, guard in zip(cured, done, strict=True):
        assert find_loop(tokens) is None
        first = next(e for e in guard.events if e.action in ("roll_back", "restart"))
        assert first.reason == "loop"
        assert len(first.dropped_ids) > 0
    watched, _ = say(model, planted, "reactive", shadow="none")
    assert all(find_loop(tokens) for tokens in watched)  # alarms alone cure nothing
