"""One family of each kind × five presses: kvx's answers are the reference's, or refused in a line.

`scripts/family_matrix.py` asks the same of every family and press.
"""

from pathlib import Path

import pytest

from tests.families import available, make
from tests.family_cells import Cell, column
from tests.family_reference import compressed, generated

PRESSES = ("snapkv", "knorm", "streaming", "expected_attention", "pyramidkv")
# what is not `same`: PyramidKV counts the compressed layers, presses lack what they look for
KINDS: dict[str, dict[str, str]] = {
    "llama": {},
    "qwen2_window": {"pyramidkv": "adapted"},
    "gemma3_text": {"pyramidkv": "adapted"},
}


@pytest.mark.parametrize("family", KINDS)
def test_every_press_answers_as_the_reference(family: str, tmp_path: Path) -> None:
    found = column(family, tmp_path, PRESSES, [0.5])
    expected = {(p, 0.5): KINDS[family].get(p, "same") for p in PRESSES}
    verdicts = {key: cell.verdict for key, cell in found.cells.items()}
    assert verdicts == {("none", 1.0): "same", **expected}, found.cells
    assert found.shared, found.warnings


@pytest.mark.parametrize("family", [name for name in KINDS if name in available()])
def test_the_reference_without_a_press_is_what_the_model_generates(family: str) -> None:
    model, ids = make(family), [i % 320 + 4 for i in range(0, 2600, 10)]
    alone = generated(model, ids, 8)
    parts = compressed(model, ids[:-3], ids[-3:], None, 8)
    assert parts.tokens == alone.tokens
    assert (parts.logits - alone.logits).abs().max() < 1e-4


def test_a_wrong_answer_is_told_as_wrong() -> None:
    assert Cell("wrong").verdict == "wrong"
