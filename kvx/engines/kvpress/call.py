"""The arguments of one call of `generate`, checked before transformers makes something of them."""

import inspect
import operator
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from numbers import Real
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin

from kvx.engines.kvpress.generation import REFUSED, check_arguments, check_config, token_ids
from kvx.errors import ArgumentError, shown

EXPECTED = (
    "must be a tensor of token ids [batch, prompt]: torch.tensor([ids]), or **inputs of a "
    'tokenizer with return_tensors="pt"'
)
NAMES = {
    *inspect.signature(GenerationMixin.generate).parameters, *vars(GenerationConfig()), *REFUSED,
    "generator", "tokenizer", "assistant_tokenizer",
} - {"self", "kwargs"}  # fmt: skip
# options of sampling: what is allowed, and in words
SAMPLING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (
        lambda v: (isinstance(v, float) and v > 0) or v == 1,
        "a float above 0, such as 0.7; greedy decoding is do_sample=False",
    ),
    "top_k": (
        lambda v: isinstance(v, int) and v >= 0,
        "a whole number of at least 0, which is all",
    ),
    "top_p": (lambda v: isinstance(v, Real) and 0 <= float(v) <= 1, "a number between 0 and 1"),
}


def check_call(model: Any, inputs: Any, options: Mapping[str, Any]) -> None:
    """Raises `ArgumentError` for the first argument that cannot be honoured or cannot be right."""
    check_arguments(options)
    config = options.get("generation_config")
    if not isinstance(config, GenerationConfig | None):
        raise ArgumentError(
            f"generation_config ({type(config).__name__}): must be a transformers GenerationConfig"
        )
    check_config(config)
    _check_names(model, config, options)
    ids = options.get("input_ids")
    if inputs is not None and ids is not None:
        raise ArgumentError("inputs: are input_ids, which are given too; leave one out")
    ids = inputs if ids is None else ids
    if ids is None:
        raise ArgumentError(f"input_ids: are missing; they {EXPECTED}")
    prompts(ids, options.get("attention_mask"), vocabulary(model))

    def setting(name: str) -> Any:
        """What transformers will take."""
        if name in options:
            return options[name]
        own = getattr(config, name, None)
        return getattr(model.generation_config, name, None) if own is None else own

    _check_length(setting("max_new_tokens"), options, config, ids.shape[1])
    if setting("do_sample"):
        for name, (allowed, words) in SAMPLING.items():
            value = setting(name)
            if value is not None and not allowed(value):
                raise ArgumentError(f"{name}={shown(value)}: must be {words}")
    if not token_ids("eos_token_id", stops := setting("eos_token_id")) and stops is not None:
        raise ArgumentError("eos_token_id=[]: holds no token id; for none: eos_token_id=None")
    if len(token_ids("pad_token_id", pad := setting("pad_token_id"))) > 1:
        raise ArgumentError(f"pad_token_id={shown(pad)}: must be one token id")


def check_generator(generator: Any) -> None:
    if not isinstance(generator, torch.Generator | None):
        raise ArgumentError(
            f"generator={shown(generator)}: must be a torch.Generator, such as "
            "torch.Generator().manual_seed(0)"
        )


def vocabulary(model: Any) -> int:
    """How many token ids the model has embeddings for."""
    return int(model.get_input_embeddings().weight.shape[0])


def prompts(input_ids: Any, mask: Any, n_vocabulary: int) -> list[list[int]]:
    """The token ids of every row of `input_ids` [batch, prompt] without its padding.

    Raises `ArgumentError` for anything but a batch of token ids below `n_vocabulary`, and for a
    mask that is not one run of ones per row.
    """
    if not isinstance(input_ids, torch.Tensor):
        raise ArgumentError(f"input_ids ({type(input_ids).__name__}): {EXPECTED}")
    shape, kind = tuple(input_ids.shape), input_ids.dtype
    if len(shape) != 2 or 0 in shape:
        raise ArgumentError(f"input_ids: are of shape {shape}; they {EXPECTED}")
    if kind.is_floating_point or kind.is_complex or kind is torch.bool:
        raise ArgumentError(f"input_ids: are of {kind}; they {EXPECTED}, of torch.long")
    if mask is None:
        found = input_ids.tolist()
    else:
        keep = _kept(mask, shape).to(input_ids.device)
        found = [row[kept].tolist() for row, kept in zip(input_ids, keep, strict=True)]
    for row, ids in enumerate(found):
        if not ids:
            raise ArgumentError(f"attention_mask: row {row} is padding only; give it a prompt")
        if wrong := [i for i in ids if not 0 <= i < n_vocabulary]:
            raise ArgumentError(
                f"input_ids: row {row} has {wrong[0]}, the model's ids are 0 to "
                f"{n_vocabulary - 1}; use this model's own tokenizer"
            )
    return found


def _kept(mask: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """Which tokens [batch, prompt] are not padding."""
    if not isinstance(mask, torch.Tensor):
        raise ArgumentError(
            f"attention_mask ({type(mask).__name__}): must be a tensor like input_ids, of 1 for "
            "tokens and 0 for padding"
        )
    if tuple(mask.shape) != shape:
        raise ArgumentError(
            f"attention_mask: is of shape {tuple(mask.shape)}, input_ids of {shape}; they must be "
            "alike"
        )
    keep = mask.bool()
    if not torch.equal(keep.to(mask.dtype), mask):
        raise ArgumentError("attention_mask: must be 1 for tokens and 0 for padding")
    begins = keep[:, 0].int() + (keep[:, 1:] & ~keep[:, :-1]).sum(1)
    if holes := (begins > 1).nonzero().flatten().tolist():
        raise ArgumentError(
            f"attention_mask: row {holes[0]} has zeros between ones, but padding is at the left or "
            "the right only; leave those tokens out (or, where no mask was given, give one of "
            "ones: transformers takes every pad_token_id for padding)"
        )
    return keep


def _check_names(model: Any, config: Any, options: Mapping[str, Any]) -> None:
    """Raises `ArgumentError` for an argument that transformers and the model do not know."""
    known = {*NAMES, *inspect.signature(model.forward).parameters, *vars(model.generation_config)}
    known |= set() if config is None else {*vars(config)}
    for name, value in options.items():
        if value is not None and name not in known:
            meant = get_close_matches(name, known, 1, cutoff=0.8)
            instead = f"did you mean {meant[0]}?" if meant else "leave it out"
            raise ArgumentError(f"{name}: is not an argument of generate; {instead}")


def _check_length(new: Any, options: Mapping[str, Any], config: Any, n_prompt: int) -> None:
    if new is not None:
        if (_whole(new) or 0) < 1:
            raise ArgumentError(
                f"max_new_tokens={shown(new)}: must be a whole number of at least 1, the tokens to "
                "generate"
            )
        return
    length = options.get("max_length")
    if length is None:
        length = getattr(config, "max_length", None)
    if length is None:
        return
    if (_whole(length) or 0) <= n_prompt:
        raise ArgumentError(
            f"max_length={shown(length)}: must be a whole number above {n_prompt}, the length of "
            "the prompt; or give max_new_tokens"
        )


def _whole(value: Any) -> int | None:
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None
