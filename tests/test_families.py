"""One family of each kind × five presses: kvx's answers are those of a reference without its code.

`scripts/family_matrix.py` asks the same of every family and press.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvx.engines.base import Response, Trace
from kvx.engines.kvpress.layers import layers_of
from tests.families import FAMILIES, available, make
from tests.family_cells import TOLERANCE, column, difference
from tests.family_reference import Answer, compressed, generated

PRESSES = ("snapkv", "knorm", "streaming", "expected_attention", "pyramidkv")
BY_QUERIES = ("snapkv", "expected_attention", "pyramidkv")
# the presses whose answers are not kvpress's own: PyramidKV where only some layers are compressed,
# and those that kvx hands the model's own queries
KINDS: dict[str, tuple[str, ...]] = {
    "llama": (),
    "llama_dynamic": (),
    "phi3_longrope": (),
    "ministral3": BY_QUERIES,
    "qwen3_window": ("pyramidkv",),
    "gemma3_text": ("expected_attention", "pyramidkv"),
    "gemma3n": BY_QUERIES,
    "gpt_oss": ("expected_attention", "pyramidkv"),
    "llama4": BY_QUERIES,
    "qwen3_next": BY_QUERIES,
    "lfm2": BY_QUERIES,
    "granite_hybrid": BY_QUERIES,
    "deepseek_v3": PRESSES,
}
WORKS = [name for name in KINDS if name in available()]


@pytest.mark.parametrize("family", WORKS)
def test_every_press_answers_as_the_reference(family: str, tmp_path: Path) -> None:
    found = column(family, tmp_path, PRESSES, [0.5])
    expected = {(p, 0.5): "adapted" if p in KINDS[family] else "same" for p in PRESSES}
    if layers_of(make(family)).latent:  # later versions cache what keys are made of
        expected["expected_attention", 0.5] = "not applicable"
    verdicts = {key: cell.verdict for key, cell in found.cells.items()}
    assert verdicts == {("none", 1.0): "same", **expected}, found.cells
    assert found.shared, found.warnings


@pytest.mark.parametrize("family", [name for name in WORKS if not FAMILIES[name].in_parts])
def test_the_reference_without_a_press_is_what_the_model_generates(family: str) -> None:
    model, ids = make(family), [i % 320 + 4 for i in range(0, 2600, 10)]
    alone = generated(model, ids, 8)
    parts = compressed(model, ids[:-3], ids[-3:], None, 8)
    assert parts.tokens == alone.tokens
    assert (parts.logits - alone.logits).abs().max() < TOLERANCE


def test_other_answers_are_told_from_the_reference() -> None:
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    tokens, logprobs = logits.argmax(-1).tolist(), logits.log_softmax(-1)
    top = logprobs.topk(20).values
    trace = Trace(tokens, top[:, 0].tolist(), [0.0] * 3, top_logprobs=top.tolist())
    ours = Response(None, None, token_ids=tokens, trace=trace)  # type: ignore[arg-type]
    answer = Answer(tokens, logits)
    assert difference(ours, answer).verdict == "same"
    other = [*tokens[:2], tokens[2] - 1]
    assert difference(replace(ours, token_ids=other), answer).verdict == "wrong"
    assert difference(replace(ours, token_ids=tokens[:2]), answer).verdict == "wrong"
    louder = Answer(tokens, logits * (1 + 20 * TOLERANCE))
    assert difference(ours, louder).verdict == "wrong"
