"""One prompt that loops when half of its KV cache is dropped, with and without the guard.

    python scripts/guard_example.py      # after `make assets`; what docs/guard/library.md shows

SmolLM2-135M answers a question about a NarrativeQA summary, whose whole prompt kvpress's KnormPress
compresses: with the full cache, compressed, and compressed under `controller=balanced`. The story
is none of those that the packaged hazard model was made from.
"""

import argparse
import textwrap
from typing import Any

import torch
from hydra.utils import instantiate
from kvpress import KnormPress

from kvx import guarded
from kvx.cli.command import compose
from kvx.engines.kvpress.model import load
from kvx.engines.kvpress.transformers_versions import pressing
from kvx.guard.events import GuardEvent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--example", default="narrativeqa-01131")
    parser.add_argument("--ratio", type=float, default=0.5, help="compression_ratio")
    parser.add_argument("--controller", default="balanced")
    parser.add_argument("--tokens", type=int, default=100, help="max_new_tokens")
    asked = parser.parse_args()

    alone = ("dataset.source.max_distractors=0", "dataset.source.n_examples=1500")
    config = compose("dataset=narrativeqa", *alone, "model=smollm2", "model.device=cpu")
    loaded = load(config.model)
    model, tokenizer = loaded.model, loaded.tokenizer
    examples = {e.example_id: e for e in instantiate(config.dataset.source).examples()}
    example, template = examples[asked.example], config.dataset.template
    question = template.question.replace("{question}", example.question)
    message = template.context.replace("{context}", example.context) + question
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": message}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    n = inputs["input_ids"].shape[1]
    print(f"{n} prompt tokens; {example.question} Expected: {' / '.join(example.answers)}\n")

    options: dict[str, Any] = {
        "max_new_tokens": asked.tokens,
        "do_sample": False,
        "eos_token_id": sorted(loaded.stop_ids),
        "pad_token_id": min(loaded.stop_ids),
    }

    def show(title: str, out: torch.Tensor) -> None:
        text = tokenizer.decode(out[0, n:], skip_special_tokens=True)
        print(f"{title}: {out.shape[1] - n} tokens\n{textwrap.fill(text, 100)}\n")

    press = KnormPress(asked.ratio)
    show("full cache", model.generate(**inputs, **options))
    with pressing(model, press):
        show("kvpress", model.generate(**inputs, **options))
    guard = guarded(model, press, asked.controller, tokenizer=tokenizer)
    out = guard.generate(**inputs, **options)
    for event in guard.events[0]:
        print(described(event, tokenizer))
    show("guarded", out)
    (done,) = guard.guard
    print(
        f"mean budget {done.mean_budget:.2f}; {done.decoded_tokens} tokens decoded, "
        f"{done.recomputed_tokens} recomputed; {done.bytes_host / 2**20:.0f} MiB kept beside"
    )


def described(event: GuardEvent, tokenizer: Any) -> str:
    hazard = "" if event.hazard is None else f" hazard {event.hazard:.2f}"
    line = f"token {event.token}: {event.mode}, {event.action} ({event.reason}){hazard}"
    if event.budget_after != event.budget_before:
        line += f", budget {event.budget_before:g} -> {event.budget_after:g}"
    if event.dropped_ids:
        dropped = tokenizer.decode(event.dropped_ids)
        line += f", {event.milliseconds:.0f} ms, {len(event.dropped_ids)} tokens taken back:\n"
        line += textwrap.fill(repr(dropped), 100, initial_indent="  ", subsequent_indent="  ")
    return line


if __name__ == "__main__":
    main()
