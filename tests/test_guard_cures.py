"""A loop that compression plants, and what is left of it under a guard."""

import pytest
import torch
from kvpress import KnormPress
from transformers import AutoModelForCausalLM

from kvx.config.folders import package_dir
from kvx.guard import guarded
from kvx.guard.events import Guarded
from kvx.guard.loop_follower import first_report
from kvx.scoring.loops import find_loop


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    found: torch.nn.Module = AutoModelForCausalLM.from_pretrained(
        package_dir() / "assets" / "tiny_recall"
    )
    return found


def say(
    model: torch.nn.Module, ids: torch.Tensor, controller: str, n: int = 48, **settings: object
) -> tuple[list[list[int]], list[Guarded]]:
    """What follows each of the prompts `ids` [n, tokens], and what was done to it."""
    guard = guarded(model, KnormPress(0.8), controller, **settings)
    out = guard.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False,
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


def test_what_loops_with_the_full_cache_too_is_compressed_again(model: torch.nn.Module) -> None:
    """Its text is the full cache's until the loop has lasted, and goes on without it."""
    ids = torch.randint(5, 300, (60, 90), generator=torch.Generator().manual_seed(0))
    n = 160  # room to be taken back, to loop again, and to go on
    compressed, full = (say(model, ids, name, n)[0] for name in ("none", "always_safe"))
    both = [
        (first_report(c) or n) < 60 and (first_report(f) or n) < 60
        for c, f in zip(compressed, full, strict=True)
    ]
    own = ids[torch.tensor(both)]
    theirs = [f for f, b in zip(full, both, strict=True) if b]
    assert len(own) >= 3
    settings = {"max_interventions": 2}
    kept, before = say(model, own, "reactive", n, let_go=False, **settings)
    told, after = say(model, own, "reactive", n, **settings)
    let_go = 0
    for i, guard in enumerate(after):
        assert all(e.reason != "let_go" for e in before[i].events)
        gone = [e for e in guard.events if e.reason == "let_go"]
        if not gone:
            assert told[i] == kept[i]
            continue
        let_go += 1
        (event,) = gone
        assert guard.events[-1] is event
        assert (event.action, event.budget_before) == ("recompress", 1.0)
        assert event.budget_after == pytest.approx(0.2, abs=0.02)
        assert event.dropped_ids == []
        assert told[i][: event.n_kept + 1] == kept[i][: event.n_kept + 1]
        if before[i].events[-1].action == "restart":
            assert told[i][: event.n_kept] == theirs[i][: event.n_kept]
        assert guard.mean_budget < before[i].mean_budget
    assert let_go >= 3
