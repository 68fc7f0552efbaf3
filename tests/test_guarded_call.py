"""What a guarded `generate` is given: refused in one line that says what to do, or taken."""

from typing import Any

import numpy as np
import pytest
import torch
from kvpress import KnormPress
from transformers import (
    AutoModelForCausalLM,
    BatchEncoding,
    DynamicCache,
    GenerationConfig,
    StoppingCriteriaList,
    TextStreamer,
)

from kvx.errors import ArgumentError
from kvx.guard import guarded
from tests.guarding import NEW, PAD, a_prompt, options, tiny_model

CACHE = "(cache|past_key_values)"  # by the version of transformers


@pytest.fixture
def model() -> Any:
    return tiny_model()


@pytest.mark.parametrize(
    "given",
    [
        {"num_beams": 2},
        {"num_return_sequences": 2, "do_sample": True},
        {"repetition_penalty": 1.2},
        {"no_repeat_ngram_size": 3},
        {"min_new_tokens": 5},
        {"max_time": 1.0},
        {"streamer": TextStreamer(None)},
        {"logits_processor": [lambda ids, scores: scores]},
        {"stopping_criteria": StoppingCriteriaList([lambda ids, scores: True])},
        {"past_key_values": DynamicCache()},
        {"cache_implementation": "quantized"},
        {"cache_implementation": "static"},
        {"use_cache": False},
        {"inputs_embeds": torch.zeros(1, 4, 64)},
        {"output_logits": True},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=lambda given: "-".join(map(str, given)),
)
def test_options_that_would_not_be_honoured(model: Any, given: dict[str, Any]) -> None:
    """Refused by name, given as arguments, and in a configuration where they can be."""
    name, ids = next(iter(given)), a_prompt(40)
    guard = guarded(model, KnormPress(0.5))
    with pytest.raises(ValueError, match=f"^{name}.*does not work under a guard") as caught:
        guard.generate(**options(ids, **given))
    assert "\n" not in str(caught.value)
    if hasattr(GenerationConfig(), name) and name != "num_return_sequences":
        config = GenerationConfig(**given, max_new_tokens=4, pad_token_id=PAD)
        with pytest.raises(ValueError, match=f"^{name}.*does not work under a guard"):
            guard.generate(ids, generation_config=config)


IDS = a_prompt(90)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (
            {"max_new_token": 6},
            "max_new_token: is not an argument of generate; did you mean max_new_t",
        ),
        ({"token_type_ids": IDS}, "token_type_ids: is not an argument of generate; leave it out"),
        (
            {"do_sample": True, "temperature": 2},
            "temperature=2: must be a float above 0, such as 0",
        ),
        ({"xyzzy": 1}, "xyzzy: is not an argument of generate; leave it out"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: must be a whole number of at least 1"),
        ({"max_new_tokens": "6"}, "max_new_tokens='6': must be a whole number"),
        ({"max_new_tokens": 6.0}, "max_new_tokens=6.0: must be a whole number"),
        (
            {"max_new_tokens": None, "max_length": 90},
            "max_length=90: must be a whole number above 90,",
        ),
        (
            {"max_new_tokens": None, "max_length": "x"},
            "max_length='x': must be a whole number above 90,",
        ),
        ({"do_sample": True, "temperature": 0.0}, "temperature=0.0: must be a float above 0"),
        ({"do_sample": True, "temperature": -1.0}, "temperature=-1.0: must be a float above 0"),
        ({"do_sample": True, "temperature": "x"}, "temperature='x': must be a float above 0"),
        ({"do_sample": True, "top_k": -1}, "top_k=-1: must be a whole number"),
        ({"do_sample": True, "top_p": 1.5}, "top_p=1.5: must be a number between 0 and 1"),
        ({"eos_token_id": "x"}, "eos_token_id='x': must be a token id"),
        ({"eos_token_id": [2, "x"]}, "eos_token_id=.2, 'x'.: must be a token id"),
        ({"eos_token_id": []}, "eos_token_id=..: holds no token id"),
        ({"pad_token_id": "x"}, "pad_token_id='x': must be a token id"),
        ({"pad_token_id": [0, 1]}, "pad_token_id=.0, 1.: must be one token id"),
        ({"generator": 5}, "generator=5: must be a torch.Generator"),
        ({"generation_config": {"max_new_tokens": 6}}, r"generation_config \(dict\): must be a"),
        ({"input_ids": None}, "input_ids: are missing"),
        ({"input_ids": IDS.tolist()}, r"input_ids \(list\): must be a tensor"),
        ({"input_ids": BatchEncoding({"input_ids": IDS})}, r"input_ids \(BatchEncoding\): must be"),
        ({"input_ids": IDS[0]}, r"input_ids: are of shape \(90,\); they must be a tensor"),
        ({"input_ids": IDS[:, :0]}, r"input_ids: are of shape \(1, 0\)"),
        ({"input_ids": IDS.float()}, "input_ids: are of torch.float32"),
        ({"input_ids": IDS + 100_000}, r"input_ids: row 0 has 100\d\d\d, the model's ids are 0 to"),
        ({"input_ids": IDS - 1_000}, "input_ids: row 0 has -"),
        ({"inputs": IDS}, "inputs: are input_ids, which are given too"),
        ({"attention_mask": [[1] * 90]}, r"attention_mask \(list\): must be a tensor"),
        ({"attention_mask": torch.ones(1, 89)}, r"attention_mask: is of shape \(1, 89\)"),
        ({"attention_mask": torch.zeros(1, 90) - 5}, "attention_mask: must be 1 for tokens"),
        ({"attention_mask": torch.tensor([[1, 0] * 45])}, "attention_mask: row 0 has zeros betw"),
        (
            {"attention_mask": torch.tensor([[0] * 9 + [1] * 9 + [0] + [1] * 71])},
            "attention_mask: row 0 has zeros between ones",
        ),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_arguments_that_cannot_be_right(model: Any, given: dict[str, Any], why: str) -> None:
    guard = guarded(model, KnormPress(0.5))
    with pytest.raises(ArgumentError, match=f"^{why}") as caught:
        guard.generate(**{**options(IDS), **given})
    assert "\n" not in str(caught.value)
    if hasattr(GenerationConfig(), next(reversed(given))):
        config = GenerationConfig(max_new_tokens=4)
        vars(config).update(given)
        with pytest.raises(ArgumentError, match=f"^{why}"):
            guard.generate(IDS, generation_config=config)


def test_what_is_not_wrong_is_taken(model: Any) -> None:
    guard, ids = guarded(model, KnormPress(0.5)), a_prompt(40)
    expected = guard.generate(**options(ids))
    wide = torch.cat([torch.full((1, 6), -100), ids, torch.full((1, 4), 10**6)], 1)
    zeros = torch.zeros(1, 50)
    zeros[:, 6:46] = 1
    for given in (
        {"temperature": 0.0},  # greedy: not looked at
        {"max_new_tokens": np.int64(NEW)},
        {"max_new_tokens": None, "max_length": 40 + NEW},
        {"eos_token_id": -1},
        {"eos_token_id": torch.tensor(299)},
        {"eos_token_id": torch.tensor([299])},
        {"input_ids": ids.int()},
        {"attention_mask": torch.ones(1, 40)},
        {"attention_mask": torch.ones(1, 40, dtype=torch.bool)},
        {"xyzzy": None},
    ):
        assert torch.equal(guard.generate(**{**options(ids), **given}), expected), given
    both = guard.generate(**options(wide, attention_mask=zeros))
    assert torch.equal(both[0, 50:], expected[0, 40:])


def test_as_custom_generate_what_reaches_it_is_checked_too(model: Any) -> None:
    guard = guarded(model, KnormPress(0.5))
    for given, why in (
        ({"cache_implementation": "quantized"}, "cache_implementation=quantized: does not work"),
        ({"cache_implementation": "static"}, "cache_implementation=static: does not work"),
        ({"cache_config": {"backend": "quanto"}}, "cache_config: does not work"),
        ({"generator": 5}, "generator=5: must be a torch.Generator"),
        ({"input_ids": IDS + 100_000}, "input_ids: row 0 has"),
        ({"input_ids": IDS.float()}, "input_ids: are of torch.float32"),
        ({"attention_mask": torch.tensor([[1, 0] * 45])}, "attention_mask: row 0 has zeros betw"),
    ):
        with pytest.raises(ArgumentError, match=f"^{why}"):
            model.generate(**{**options(IDS, custom_generate=guard), **given})
    config = GenerationConfig(cache_implementation="static", max_new_tokens=4, pad_token_id=PAD)
    named = f"^cache_implementation=static: .*{CACHE} a StaticCache"
    with pytest.raises(ArgumentError, match=named):
        model.generate(IDS, generation_config=config, custom_generate=guard)
    given = options(IDS, custom_generate=guard, cache_implementation="dynamic")
    assert torch.equal(model.generate(**given), guard.generate(**options(IDS)))
    holes = IDS.clone()
    holes[0, 45] = PAD  # transformers makes a mask of it
    with pytest.raises(ArgumentError, match=r"attention_mask: .*where no mask was given"):
        guard.generate(holes, max_new_tokens=4, pad_token_id=PAD)


def test_options_that_transformers_prepares(model: Any) -> None:
    guard, ids = guarded(model, KnormPress(0.5)), a_prompt(40)
    sampled = options(ids, do_sample=True, custom_generate=guard)
    with pytest.raises(ValueError, match=r"logits_processor \(MinPLogitsWarper\)"):
        model.generate(**{**sampled, "min_p": 0.1})
    cache = DynamicCache()
    model.generate(ids[:, :8], past_key_values=cache, max_new_tokens=2)
    with pytest.raises(ValueError, match=f"^{CACHE}: does not work under a guard"):
        model.generate(**options(ids, custom_generate=guard), past_key_values=cache)
    mask = torch.ones(2, 40, dtype=torch.long)
    mask[1] = 0
    with pytest.raises(ValueError, match="row 1 is padding only"):
        guard.generate(**options(ids.repeat(2, 1), attention_mask=mask))
    other = AutoModelForCausalLM.from_config(model.config)
    with pytest.raises(ValueError, match="guards another model"):
        other.generate(**options(ids, custom_generate=guard))
