"""When a press is not what its name says: conditions in its YAML, checked for every request."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kvpress import LagKVPress, PyramidKVPress, StreamingLLMPress
from kvpress.utils import compute_n_kept

from kvx.cli.checks import check
from kvx.cli.command import compose
from kvx.config import conditions
from kvx.config.identity import resolved
from kvx.config.schema import BudgetConfig, BudgetKind, Config, Degenerate
from kvx.data.manifest import Manifest
from kvx.errors import UserError
from kvx.points import Point

PYRAMIDKV, LAGKV = compose("press=pyramidkv"), compose("press=lagkv")
NAMES = {"prompt_tokens": 200, "asked": 50.5, "kept": 50, "window": 64, "press.window": 8}


def point_of(config: Config) -> Point:
    return Point(config, Manifest("", "", "", "", "", "", "", (), (), {}), Path())


@pytest.mark.parametrize(
    ("condition", "true"),
    [
        ("kept < window", True),
        ("kept > window or prompt_tokens > 100", True),
        ("kept < window and prompt_tokens < 100", False),
        ("not kept < window", False),
        ("1 < kept < 60", True),
        ("(1 if kept < 3 else 0)", False),
        ("int(asked) == kept", True),
        ("-(-prompt_tokens // 60) == 4", True),
        ("min(kept, press.window) == 8 and max(1, 2) == round(1.6)", True),
        ("prompt_tokens % 7 != 200 - 28 * 7", False),
    ],
)
def test_a_condition_is_an_expression_of_the_prompt_and_the_arguments(
    condition: str, true: bool
) -> None:
    assert conditions.holds(condition, NAMES) is true


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("windw < 3", "'windw' is not known; there are asked, kept, press.window"),
        ("kept <", "is not an expression"),
        ("__import__('os').system('true')", "cannot stand in a condition"),
        ("kept ** 999999999", "cannot stand in a condition"),
        ("kept is 3", "cannot stand in a condition"),
        ("'a' < kept", "cannot stand in a condition"),
        ("kept in (1, 2)", "cannot stand in a condition"),
        ("~kept", "cannot stand in a condition"),
        ("kept / 0 > 1", "division by zero"),
        ("int() == int(1, 2, 3)", "int"),
    ],
)
def test_a_condition_that_cannot_be_told_is_refused(condition: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as refused:
        conditions.holds(condition, NAMES)
    assert said in str(refused.value)


def test_a_wrong_condition_is_one_line_before_anything_runs() -> None:
    config = compose("press=snapkv", "budget=0.5")
    press = replace(config.press, degenerate_when=[Degenerate("windw < 3", "of no use")])
    with pytest.raises(UserError, match="press=snapkv: degenerate_when: 'windw < 3': 'windw'"):
        check(replace(config, press=press))


def test_a_reason_is_told_and_its_words_name_no_point() -> None:
    config = compose("press=knorm", "budget=0.5")
    press = replace(config.press, degenerate_when=[Degenerate("prompt_tokens < 99", "too short")])
    point = point_of(replace(config, press=press))
    assert point.degenerate_reason(98) == "too short"
    assert point.degenerate_reason(99) is None
    assert "reason" not in resolved(press)["degenerate_when"][0]
    assert "degenerate_when" not in resolved(config.press)
    assert "keeps" not in resolved(config.press)


def test_what_was_measured_decides_where_a_method_keeps_another_number() -> None:
    point = point_of(compose("press=chunkkv", "budget=0.5"))
    assert point.degenerate_reason(150) is None  # 75 asked, more than the window of 64
    reason = point.degenerate_reason(150, 60.0)
    assert reason == "keeps 60 entries, chunkkv needs more than 64"


@settings(max_examples=400)
@given(
    n=st.integers(65, 6000), ratio=st.floats(0.01, 0.99), tokens=st.integers(1, 6000),
    window=st.sampled_from([8, 16, 64]), beta=st.sampled_from([1, 2, 20]), by_tokens=st.booleans(),
)  # fmt: skip
def test_pyramidkv_is_flagged_exactly_where_kvpress_gives_all_layers_the_same(
    n: int, ratio: float, tokens: int, window: int, beta: int, by_tokens: bool
) -> None:
    budget = BudgetConfig(ratio=ratio)
    if by_tokens:
        budget = BudgetConfig(kind=BudgetKind.tokens, tokens=tokens)
    config = replace(PYRAMIDKV, budget=budget)
    assert config.press.method is not None
    method = {**config.press.method, "window_size": window, "beta": beta}
    press = replace(config.press, method=method, degenerate_at_tokens=0)
    point = point_of(replace(config, press=press))
    if point.kept_tokens(n) == n:
        return
    theirs = PyramidKVPress(point.compression_ratio(n), window_size=window, beta=beta)
    module = SimpleNamespace(config=SimpleNamespace(num_hidden_layers=1001), layer_idx=0)
    first = theirs.get_layer_budget(module, n)
    module.layer_idx = 1000
    last = theirs.get_layer_budget(module, n)
    told = point.degenerate_reason(n)
    if abs(first - last) > 1:
        assert told is None
    elif first == last:
        assert told == "all layers keep the same number of entries, which is SnapKV"


@settings(max_examples=100)
@given(n=st.integers(10, 700), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_lagkv_that_is_not_flagged_compares_partitions(n: int, ratio: float, seed: int) -> None:
    """Two prompts that differ in the keys only are kept alike where it is flagged, for it does not
    look at them; and where it does look, what it protects is not all that it keeps."""
    point = point_of(replace(LAGKV, budget=BudgetConfig(ratio=1 - ratio)))
    told = point.degenerate_reason(n)
    states = torch.randn(2, 2, 1, 1, n, 4, generator=torch.Generator().manual_seed(seed))
    press = LagKVPress(ratio)
    one, other = (press.score(None, None, k, v, None, {}) for k, v in states)
    kept = compute_n_kept(n, ratio)
    if n < 4 + 2 * 128:
        assert torch.equal(one, other)
        assert told is not None
        if 4 < kept < n and "StreamingLLM" in told:
            theirs = StreamingLLMPress(ratio).score(None, None, *states[0], None, {})
            mine, streaming = (set(s[0, 0].topk(kept).indices.tolist()) for s in (one, theirs))
            assert mine == streaming
    elif kept > int((one == 1).sum()):
        assert told is None
    else:
        assert told is not None
