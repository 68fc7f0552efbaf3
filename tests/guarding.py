"""A model, prompts and options for `kvx.guarded`."""

import functools
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from kvx.config.folders import package_dir
from kvx.guard.controllers import Gate
from kvx.guard.events import GuardEvent

NEW = 24
PAD = 0


@functools.cache
def tiny_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(package_dir() / "assets" / "tiny_recall").eval()


def a_prompt(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 300, (1, n), generator=torch.Generator().manual_seed(seed))


def options(ids: torch.Tensor, **more: Any) -> dict[str, Any]:
    given = {
        "attention_mask": torch.ones_like(ids), "max_new_tokens": NEW, "do_sample": False,
        "eos_token_id": None, "pad_token_id": PAD,
    }  # fmt: skip
    return {"input_ids": ids, **given, **more}


def gate(nats: float) -> Gate:
    return Gate(name="gated", prefill_gate_nats=nats)


def done(events: list[GuardEvent]) -> list[tuple[Any, ...]]:
    return [(e.token, e.mode, e.action, e.budget_after, e.n_kept, e.dropped_ids) for e in events]
