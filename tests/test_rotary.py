"""Models whose rotary frequencies depend on the length: each row as if it had the model alone.

The reference is a fresh model with one sequence in transformers' own cache: the prompt, the
question, then token by token.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from kvpress import ExpectedAttentionPress, KeyRerotationPress, KnormPress, SnapKVPress
from transformers import (
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
)

from kvx.engines.kvpress.cache import Bucket
from kvx.engines.kvpress.compress import hooked
from kvx.engines.kvpress.forward import extend, forward, question
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.prefill import prefill
from kvx.engines.kvpress.prompt_row import PromptRow
from kvx.engines.kvpress.rotary import length_dependent, own_positions, unchanged
from kvx.engines.kvpress.sequence import Row
from kvx.engines.kvpress.streams import RandomStream

SIZES = {
    "vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LENGTHS = (60, 295, 330)  # below the border at 300, across it with the question, above
QUESTION = 9
STEPS = (5, 7)
SHORT, LONG = [1.0] * 8, [1.0 + 0.5 * i for i in range(8)]
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT, "long_factor": LONG,
    "original_max_position_embeddings": 300, "factor": 8.0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


def llama_dynamic() -> Any:
    rope = dict(DYNAMIC)
    return LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=300, rope_parameters=rope))


def phi3_longrope() -> Any:
    config = Phi3Config(
        **SIZES,
        sliding_window=None,
        max_position_embeddings=2400,
        original_max_position_embeddings=300,
        rope_parameters=dict(LONGROPE),
    )
    return Phi3ForCausalLM(config)


def phimoe_longrope() -> Any:
    rope = LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.3}
    config = PhimoeConfig(
        **SIZES,
        sliding_window=None,
        num_local_experts=2,
        max_position_embeddings=2400,
        rope_parameters=rope,
    )
    return PhimoeForCausalLM(config)


def gemma3_dynamic() -> Any:
    config = Gemma3TextConfig(
        **SIZES,
        head_dim=16,
        query_pre_attn_scalar=16,
        max_position_embeddings=300,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        sliding_window=4096,  # no prompt here is longer
        rope_parameters={
            "full_attention": dict(DYNAMIC),
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        },
    )
    return Gemma3ForCausalLM(config)


FAMILIES: dict[str, Callable[[], Any]] = {
    f.__name__: f for f in (llama_dynamic, phi3_longrope, phimoe_longrope, gemma3_dynamic)
}


@pytest.fixture(scope="module", params=FAMILIES)
def fresh(request: pytest.FixtureRequest) -> Any:
    """A new model of one family, only to be copied."""
    torch.manual_seed(0)
    model = FAMILIES[request.param]().eval()
    model.set_attn_implementation("sdpa")
    return model


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def loaded_copy(model: Any) -> LoadedModel:
    return LoadedModel(copy.deepcopy(model), None, torch.device("cpu"), frozenset())


def tokens(n: int, seed: int) -> list[int]:
    return torch.randint(3, 200, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def reference(
    fresh: Any, passes: Sequence[Sequence[int]], press: Any = None, packs: bool = False
) -> torch.Tensor:
    """Logits [vocab] after the last of `passes`, each one forward pass of a fresh model.

    The `press` compresses the first; the model that goes on has not seen what it did.
    """
    model, cache, start = copy.deepcopy(fresh), DynamicCache(config=fresh.config), 0
    out = None
    if press is not None:
        prompt, passes = passes[0], passes[1:]
        with hooked(model, press, cache, False):  # on layers of full attention
            model.model(torch.tensor([list(prompt)]), past_key_values=cache)
        model, start = copy.deepcopy(fresh), cache.get_seq_length() if packs else len(prompt)
    for ids in passes:
        n = len(ids)
        options = {"position_ids": torch.arange(start, start + n)[None], "past_key_values": cache}
        if press is not None and isinstance(model, Gemma3ForCausalLM):
            # transformers would take the first layer's length for that of the compressed one, and
            # let tokens see those that follow
            options["attention_mask"] = {
                kind: causal(cache.layers[index].keys.shape[2], n)
                for index, kind in enumerate(model.config.layer_types)
            }
        out = model(torch.tensor([list(ids)]), **options)
        start += n
    assert out is not None
    logits: torch.Tensor = out.logits[0, -1]
    return logits


def causal(before: int, n: int) -> torch.Tensor:
    """What `n` tokens see behind `before` entries, [1, 1, n, entries]."""
    return torch.ones(n, before + n, dtype=torch.bool).tril(before)[None, None]


def prompt_row(press: Any, kept: int) -> PromptRow:
    return PromptRow(press, kept, RandomStream(0, (torch.device("cpu"),)))


def admitted(loaded: LoadedModel, n: int, seed: int) -> tuple[Bucket, Row]:
    """A row with the full cache of a prompt of `n` tokens, before its question."""
    caches = prefill(loaded, tokens(n, seed), [prompt_row(None, n)], QUESTION + 40, False)
    return caches.buckets[0], Row(None, n)


def test_rows_of_different_lengths_are_each_as_in_a_fresh_model_of_their_own(fresh: Any) -> None:
    loaded = loaded_copy(fresh)
    given = [admitted(loaded, n, seed) for seed, n in enumerate(LENGTHS)]
    buckets, rows = [b for b, _ in given], [r for _, r in given]
    rest, steps = tokens(QUESTION, 9), [tokens(3, 10 + step) for step in range(12)]
    found = [question(loaded, buckets, rows, rest, 1)[:, -1]]
    for step in steps:
        found.append(forward(loaded, buckets, rows, torch.tensor(step)[:, None])[:, -1])
    for at, n in enumerate(LENGTHS):
        passes = [tokens(n, at), rest, *([step[at]] for step in steps)]
        for i, logits in enumerate(found):
            expected = reference(fresh, passes[: 2 + i])
            assert torch.allclose(logits[at], expected, atol=1e-4), (n, i)


def test_the_lengths_differ_enough_to_see_a_wrong_one(fresh: Any) -> None:
    """What one rotation for all rows would give: the tests here are able to fail."""
    model, seen = copy.deepcopy(fresh), torch.tensor([tokens(60, 0)])
    alone = model(seen).logits[0, -1]
    apart = torch.tensor([[*range(59), 340]])
    assert not torch.allclose(model(seen, position_ids=apart).logits[0, 50], alone, atol=1e-2)
    module = length_dependent(model)[0]
    options = {"layer_type": "full_attention"} if isinstance(module.rope_type, dict) else {}
    x, near = torch.zeros(2, 2, 64), torch.tensor([[7, 8], [340, 341]])
    with own_positions(model):
        (own, _), (first, _) = module(x, near, **options), module(x[:1], near[:1], **options)
    assert torch.equal(own[:1], first)
    assert not torch.allclose(module(x, near, **options)[0][:1], first, atol=1e-3)


def test_a_question_passed_in_parts_counts_as_one(
    fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = loaded_copy(fresh)
    given = [admitted(loaded, n, seed) for seed, n in enumerate(LENGTHS)]
    rest = tokens(QUESTION, 9)
    monkeypatch.setattr("kvx.engines.kvpress.forward.QUESTION_TOKENS", 6)  # two of each row
    logits = question(loaded, [b for b, _ in given], [r for _, r in given], rest, 1)[:, -1]
    for at, n in enumerate(LENGTHS):
        expected = reference(fresh, [tokens(n, at), rest])
        assert torch.allclose(logits[at], expected, atol=1e-4), n


@pytest.mark.parametrize("at_once", [100, 4])
def test_generated_tokens_passed_again_are_rotated_as_when_they_were_generated(
    fresh: Any, at_once: int
) -> None:
    loaded = loaded_copy(fresh)
    bucket, row = admitted(loaded, 280, 0)
    rest, generated = tokens(QUESTION, 9), tokens(30, 10)  # the border is at the 11th
    logits = extend(loaded, bucket, row, [*rest, *generated], at_once, len(rest))
    assert logits is not None
    expected = reference(fresh, [tokens(280, 0), rest, *([t] for t in generated)])
    assert torch.allclose(logits[0], expected, atol=1e-4)


class Press:
    reads_weights = False

    def __init__(self, build: Callable[[], Any]) -> None:
        self.build, self.method_key, self.reads_weights = build, None, False

    def at(self, budget: float) -> "Press":
        raise AssertionError(budget)


PRESSES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "expected": lambda: ExpectedAttentionPress(0.5, n_future_positions=200),  # far positions
    "snapkv": lambda: SnapKVPress(0.5, window_size=16),
    "rerotated": lambda: KeyRerotationPress(KnormPress(0.5)),
}


def after(loaded: LoadedModel, n: int, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """Logits [passes, vocab] of the question and two tokens after a prefill of these presses."""
    prompts = [prompt_row(Press(PRESSES[name]), n if name == "none" else n // 2) for name in names]
    caches = prefill(loaded, tokens(n, 0), prompts, QUESTION + 2, False)
    assert [prompt.error for prompt in prompts] == [None] * len(names)
    order = [index for members in caches.rows for index in members]
    rows = [Row(None, n - prompts[index].packed(n)) for index in order]
    found = [question(loaded, caches.buckets, rows, tokens(QUESTION, 9), 1)[:, -1]]
    for token in STEPS:
        ids = torch.full((len(rows), 1), token)
        found.append(forward(loaded, caches.buckets, rows, ids)[:, -1])
    logits = torch.stack(found, 1)
    return {names[index]: logits[at] for at, index in enumerate(order)}


@pytest.mark.parametrize("n", [250, 330])
def test_no_press_changes_what_another_point_of_the_prefill_gets(fresh: Any, n: int) -> None:
    # Gemma 3's embedding has frequencies for each type of layers, and these presses do not ask
    # for theirs; Phimoe's has no `inv_freq` to turn keys by
    able = {"Gemma3ForCausalLM": ["none", "snapkv"], "PhimoeForCausalLM": list(PRESSES)[:3]}
    names = able.get(type(fresh).__name__, list(PRESSES))
    loaded, passes = loaded_copy(fresh), [tokens(n, 0), tokens(QUESTION, 9), *([t] for t in STEPS)]
    for order in (names, names[::-1]):
        for name, logits in after(loaded, n, order).items():
            press, packs = PRESSES[name](), name == "rerotated"
            for i in range(3):
                expected = reference(fresh, passes[: 2 + i], press, packs)
                assert torch.allclose(logits[i], expected, atol=1e-4), (name, order, i)


def state(model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, buffer in module.named_buffers(recurse=False):
            found[f"{name}.{key}"] = buffer.clone()
        plain = {k: v for k, v in vars(module).items() if not k.startswith("_") and v is not None}
        found |= {f"{name}:{key}": value for key, value in plain.items()}
    return found


def assert_same_state(model: Any, before: dict[str, Any]) -> None:
    after = state(model)
    assert after.keys() == before.keys()
    for key, value in before.items():
        same = torch.equal(after[key], value) if torch.is_tensor(value) else after[key] is value
        assert same or after[key] == value, key


def test_the_model_has_its_own_frequencies_back(fresh: Any) -> None:
    model = copy.deepcopy(fresh)
    before, ids = state(model), torch.tensor([tokens(330, 0)])
    with own_positions(model):
        model(ids)
    assert_same_state(model, before)
    with own_positions(model), pytest.raises(IndexError), unchanged(model):
        model(ids).logits[0, 1000]
    assert_same_state(model, before)
    with pytest.raises(IndexError), own_positions(model):
        model(ids).logits[0, 1000]
    assert_same_state(model, before)


def test_a_used_model_answers_as_a_fresh_one(fresh: Any) -> None:
    loaded = loaded_copy(fresh)
    loaded.model(torch.tensor([tokens(330, 0)]))  # by its owner, before kvx
    bucket, row = admitted(loaded, 60, 0)
    logits = question(loaded, [bucket], [row], tokens(QUESTION, 9), 1)[0, -1]
    expected = reference(fresh, [tokens(60, 0), tokens(QUESTION, 9)])
    assert torch.allclose(logits, expected, atol=1e-4)


def test_static_embeddings_are_left_alone() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    assert length_dependent(model) == ()
    with own_positions(model):
        assert "forward" not in vars(model.model.rotary_emb)
