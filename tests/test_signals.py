"""Per-token signals against slow and obvious ones, and what the engine records of them."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax

from kvx.guard.signals import TOP, divergence_nats, thinking_tokens, token_signals
from kvx.scoring.repetition import MIN_PERIODIC, WINDOW, Repetition


def slow(logits: np.ndarray, token: int) -> dict[str, float]:
    """The signals of one distribution, in float64, one definition after another."""
    logp = log_softmax(logits.astype(np.float64))
    p, order = np.exp(logp), np.argsort(-logp, kind="stable")
    rest = log_softmax(np.delete(logits.astype(np.float64), order[0]))
    return {
        "logprob": logp[token],
        "entropy_nats": -(p * logp).sum(),
        "top1_prob": p.max(),
        "top5_prob": np.sort(p)[-5:].sum(),
        "entropy_rest_nats": -(np.exp(rest) * rest).sum(),
        "mean_logprob": logp.mean(),
        "margin": logp[order[0]] - logp[order[1]],
        "rank": (logp > logp[token]).sum(),
    }


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 15.0), st.integers(2, 300))
def test_signals_are_what_their_names_say(seed: int, scale: float, vocabulary: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((3, vocabulary)) * scale).astype(np.float32)
    tokens = rng.integers(0, vocabulary, 3)
    found = token_signals(torch.from_numpy(logits), torch.from_numpy(tokens))
    for row in range(3):
        for name, value in slow(logits[row], tokens[row]).items():
            assert getattr(found, name)[row] == pytest.approx(value, rel=2e-3, abs=2e-4), name
        top = np.sort(log_softmax(logits[row]))[::-1][:TOP]
        assert found.top_logprobs[row][: len(top)] == pytest.approx(top, rel=1e-3, abs=1e-3)


def test_a_certain_model_has_finite_signals() -> None:
    logits = torch.full((1, 1000), -1e4)
    logits[0, 7] = 1e4
    found = token_signals(logits, torch.tensor([7]))
    assert found.top1_prob[0] == 1.0
    assert found.entropy_nats[0] == pytest.approx(0.0, abs=1e-30)
    assert all(np.isfinite(value).all() for value in vars(found).values())


def test_masked_logits_have_finite_signals() -> None:
    logits = torch.zeros(1, 50)
    logits[0, 10:] = -torch.inf
    found = token_signals(logits, torch.tensor([3]))
    assert found.entropy_nats[0] == pytest.approx(np.log(10), rel=1e-5)
    assert all(np.isfinite(value).all() for value in vars(found).values())


def test_rows_do_not_see_each_other() -> None:
    logits = torch.randn(6, 400, generator=torch.Generator().manual_seed(0)) * 4
    tokens = logits.argmax(-1)
    together = token_signals(logits, tokens)
    for row in range(6):
        alone = token_signals(logits[row : row + 1], tokens[row : row + 1])
        for name, value in vars(alone).items():
            assert getattr(together, name)[row] == pytest.approx(value[0], rel=1e-5, abs=1e-5)


def test_the_divergence_of_two_known_distributions() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    expected = (p * (p / q).log()).sum().item()
    assert divergence_nats(p.log(), q.log()).item() == pytest.approx(expected)
    assert divergence_nats(p.log(), p.log()).item() == pytest.approx(0.0, abs=1e-7)


def test_thinking_tokens_are_found_with_and_without_a_space() -> None:
    words = [" wait", "Wait", "wai", " however", "tea", "Hmm"]
    assert thinking_tokens(words.__getitem__, range(len(words))) == {0, 1, 3, 5}


def slow_period(tokens: list[int]) -> int:
    for period in range(1, 65):
        least = max(period, MIN_PERIODIC)
        if len(tokens) < least + period:
            continue
        if tokens[-least:] == tokens[-least - period : -period]:
            return period
    return 0


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 30), st.integers(1, 4))
def test_repetition_is_what_its_definition_says(head: list[int], size: int, times: int) -> None:
    tokens = head + [5 + i % 7 for i in range(size)] * times
    tail, seen = Repetition(), Counter[tuple[int, ...]]()
    for n, token in enumerate(tokens, 1):
        count, period = tail.push(token)
        window = tuple(tokens[max(0, n - WINDOW) : n])
        assert count == (seen[window] if n >= WINDOW else 0)
        seen[window] += 1
        assert period == slow_period(tokens[:n])
