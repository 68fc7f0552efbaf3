"""Which options of transformers' `generate` work under a guard, and which are refused."""

import operator
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from kvx.config.schema import DecodingConfig
from kvx.engines.kvpress.transformers_versions import CACHE_NAMES
from kvx.errors import ArgumentError, shown
from kvx.guard.events import Guarded

GREEDY = "decode greedily, or with do_sample=True and temperature, top_k, top_p"
LOGITS = f"the guard judges the model's own logits; {GREEDY}"
OWN_CACHE = "a guard keeps a cache of its own; leave it out"
ONLY = "only sequences and guard are returned (return_dict_in_generate=True)"
# by argument or option: values that change nothing, and what to do instead
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "num_beams": ((1,), GREEDY),
    "num_beam_groups": ((1,), GREEDY),
    "penalty_alpha": ((0.0,), GREEDY),
    "num_return_sequences": ((1,), "repeat the prompt in the batch"),
    "max_time": ((), "limit max_new_tokens"),
    "stop_strings": ((), "give token ids as eos_token_id"),
    "stopping_criteria": ((), "use eos_token_id and max_new_tokens"),
    "prefix_allowed_tokens_fn": ((), LOGITS),
    "logits_processor": ((), LOGITS),
    "repetition_penalty": ((1.0,), f"{LOGITS}; repetition_penalty=1.0 turns it off"),
    "no_repeat_ngram_size": ((0,), LOGITS),
    "min_new_tokens": ((0,), LOGITS),
    "min_length": ((0,), LOGITS),
    "streamer": ((), "text may be taken back; show it when generate returns, or use kvx.serve"),
    "assistant_model": ((), "leave it out"),
    "prompt_lookup_num_tokens": ((0,), "leave it out"),
    "token_healing": ((False,), "leave it out"),
    "synced_gpus": ((False,), "run the model on one device"),
    "past_key_values": ((), OWN_CACHE),
    "cache": ((), OWN_CACHE),
    "cache_implementation": (("dynamic",), OWN_CACHE),
    "cache_config": ((), OWN_CACHE),
    "use_cache": ((True,), "a guard needs the cache; leave it out"),
    "inputs_embeds": ((), "give input_ids"),
    "position_ids": ((), "give an attention_mask, which says where the prompts begin"),
    "cache_position": ((), "give an attention_mask, which says where the prompts begin"),
    "negative_prompt_ids": ((), "leave it out"),
    "negative_prompt_attention_mask": ((), "leave it out"),
    "custom_generate": ((), "guarded(...) is one itself"),
    "output_scores": ((False,), ONLY),
    "output_logits": ((False,), ONLY),
    "output_attentions": ((False,), ONLY),
    "output_hidden_states": ((False,), ONLY),
}
# what transformers makes of supported options
WARPERS = (TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)
CRITERIA = (MaxLengthCriteria, EosTokenCriteria)
# arguments that transformers fills in itself
OWN = {"attention_mask", "position_ids", "cache_position", "logits_to_keep", *CACHE_NAMES}


@dataclass
class GuardedOutput(GenerateDecoderOnlyOutput):  # type: ignore[misc]
    """`sequences` [batch, prompt + new] and, per sequence, what its controller did."""

    guard: list[Guarded] | None = None


@dataclass(frozen=True)
class Generation:
    """Supported options, read from a prepared `GenerationConfig`."""

    decoding: DecodingConfig
    stop_ids: frozenset[int]
    pad_id: int
    return_dict: bool


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Raises `ArgumentError` for the first argument of `generate` that would not be honoured."""
    for name, value in arguments.items():
        harmless, instead = REFUSED.get(name, ((value,), ""))
        if value is None or value in harmless or (isinstance(value, list) and not value):
            continue
        shown = f"={value}" if isinstance(value, bool | int | float | str) else ""
        raise ArgumentError(f"{name}{shown}: does not work under a guard; {instead}")


def check_config(config: Any) -> None:
    """Raises `ArgumentError` for the first option of a generation config that does not work."""
    check_arguments({name: getattr(config, name, None) for name in REFUSED})


def read(
    config: Any, n_prompt: int, processors: Sequence[Any], criteria: Sequence[Any]
) -> Generation:
    """The options of a prepared generation `config` for prompts padded to `n_prompt` tokens.

    Raises `ArgumentError` for one that does not work, wherever it came from.
    """
    check_config(config)
    _check_types("logits_processor", processors, WARPERS)
    _check_types("stopping_criteria", criteria, CRITERIA)
    decoding = DecodingConfig(max_new_tokens=config.max_length - n_prompt)
    if config.do_sample:
        decoding.temperature = 1.0 if config.temperature is None else float(config.temperature)
        decoding.top_k = config.top_k or 0
        decoding.top_p = 1.0 if config.top_p is None else float(config.top_p)
    stops = token_ids("eos_token_id", config.eos_token_id)
    pad = token_ids("pad_token_id", config.pad_token_id) or stops or [0]
    return Generation(decoding, frozenset(stops), pad[0], bool(config.return_dict_in_generate))


def token_ids(option: str, value: Any) -> list[int]:
    """The ids of an option that takes one or several, none for None. Raises `ArgumentError`."""
    if value is None:
        return []
    try:
        ids = value.tolist() if isinstance(value, torch.Tensor) else value
        several = list(ids) if isinstance(ids, Sequence | Set) else [ids]
        return [operator.index(i) for i in several]
    except TypeError:
        raise ArgumentError(
            f"{option}={shown(value)}: must be a token id, a whole number; for none: {option}=None"
        ) from None


def _check_types(option: str, items: Sequence[Any], known: Sequence[type]) -> None:
    for item in items:
        if type(item) not in known:
            name, instead = type(item).__name__, REFUSED[option][1]
            raise ArgumentError(f"{option} ({name}): does not work under a guard; {instead}")


def padded(input_ids: torch.Tensor, new: Sequence[Sequence[int]], pad_id: int) -> torch.Tensor:
    """`input_ids` [batch, prompt] followed by each row's `new` tokens, padded on the right."""
    longest = max(map(len, new))
    rows = [[*tokens, *[pad_id] * (longest - len(tokens))] for tokens in new]
    return torch.cat([input_ids, torch.tensor(rows).to(input_ids)], dim=1)
