"""`kvx.guarded`: a transformers model that the caller made, with a guard around `generate`."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from kvx.config.controller import ControllerConfig
from kvx.config.guard import GuardConfig, Shadow
from kvx.data.prompt import PromptParts
from kvx.engines.kvpress.admission import Submission
from kvx.engines.kvpress.call import check_call, check_generator, prompts, vocabulary
from kvx.engines.kvpress.generation import (
    OWN,
    OWN_CACHE,
    Generation,
    GuardedOutput,
    check_arguments,
    padded,
    read,
)
from kvx.engines.kvpress.guarded import (
    LiveGuard,
    hazard_model,
    live_policy,
    renew_hazard_models,
)
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.observers import StepSignals
from kvx.engines.kvpress.parts import packs
from kvx.engines.kvpress.press_object import object_press
from kvx.engines.kvpress.scheduler import Refused, Scheduler, Task
from kvx.engines.kvpress.sequence import Row
from kvx.engines.kvpress.shadow import FULL
from kvx.engines.kvpress.sharing import ragged_obstacle
from kvx.engines.kvpress.transformers_versions import given_cache, warn_of_untested
from kvx.errors import ArgumentError, UserError, first_line
from kvx.guard.controllers.base import check_live
from kvx.guard.events import Guarded, GuardEvent
from kvx.guard.features import FeatureState
from kvx.guard.live import SequenceGuard


class GuardedModel:
    """Generates with a press and a controller; also works as transformers' `custom_generate`.

    One call at a time: like kvpress, it works through the model's own modules.
    """

    def __init__(
        self,
        model: Any,
        press: Any,
        controller: ControllerConfig,
        tokenizer: Any,
        guard: GuardConfig,
    ) -> None:
        _check_model(model)
        warn_of_untested()
        self.model = model
        self.press = object_press(press)
        _check_press(press, model)
        self.guard: list[Guarded] = []  # of the latest call, per sequence
        renew_hazard_models()
        try:
            self._policy = live_policy(controller, guard)
            check_live(controller)
            if controller.needs_hazard:
                FeatureState(hazard_model(guard.model).names)
        except KeyError as error:
            raise ArgumentError(
                f"hazard_model={guard.model}: not a model for live use: {error.args[0]}; train "
                "one with train.features=full"
            ) from None
        except UserError as error:
            raise ArgumentError(str(error)) from None
        # no shadow where no budget can be raised
        idle = not controller.acts or self.press.nominal >= FULL
        self._controller = controller
        self._guard = replace(guard, shadow=Shadow.none) if idle else guard
        self._loaded = LoadedModel(model, tokenizer, model.device, frozenset(), owned=False)

    @property
    def controller(self) -> ControllerConfig:
        return self._controller

    @property
    def events(self) -> list[list[GuardEvent]]:
        """What the controller did in the latest call: per sequence, in order."""
        return [sequence.events for sequence in self.guard]

    def generate(self, inputs: torch.Tensor | None = None, **options: Any) -> Any:
        """What `model.generate` returns; `inputs` or `input_ids` [batch, prompt] are token ids.

        Each prompt is compressed alone, without its padding. `generator` seeds sampling, else
        torch's own. With `return_dict_in_generate=True` the result also has `guard`, one
        `Guarded` per sequence. Raises `ArgumentError`, a ValueError, for what does not work here.
        """
        check_call(self.model, inputs, options)
        return self.model.generate(inputs, custom_generate=self, **options)

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: Sequence[Any] = (),
        stopping_criteria: Sequence[Any] = (),
        generation_config: Any = None,
        generator: torch.Generator | None = None,
        cache_implementation: str | None = None,
        cache_config: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """The decoding method that transformers' `generate` calls with prepared arguments.

        transformers passes on arguments named here as they were given: a cache that was asked for
        is refused before transformers makes it.
        """
        if model is not self.model:
            raise ArgumentError("custom_generate: guards another model; make one for this model")
        asked = {"cache_implementation": cache_implementation, "cache_config": cache_config}
        check_arguments({**asked, **{k: v for k, v in model_kwargs.items() if k not in OWN}})
        _check_cache(model_kwargs, generation_config)
        check_generator(generator)
        ids = prompts(input_ids, model_kwargs.get("attention_mask"), vocabulary(model))
        n_prompt = input_ids.shape[1]
        options = read(generation_config, n_prompt, logits_processor, stopping_criteria)
        seeds = torch.randint(2**62, (len(ids),), generator=generator, device=_device(generator))
        rows = self._decode(ids, options, seeds.tolist())
        self.guard = [_result(row) for row in rows]
        sequences = padded(input_ids, [row.tokens for row in rows], options.pad_id)
        if options.return_dict:
            return GuardedOutput(sequences=sequences, guard=self.guard)
        return sequences

    @torch.inference_mode()
    def _decode(
        self, ids: Sequence[Sequence[int]], options: Generation, seeds: Sequence[int]
    ) -> list[Row]:
        """The finished rows of the prompts `ids`."""
        loaded = self._loaded
        if (loaded.stop_ids, loaded.device) != (options.stop_ids, self.model.device):
            self._loaded = replace(loaded, stop_ids=options.stop_ids, device=self.model.device)
        max_new_tokens = options.decoding.max_new_tokens
        tasks = [
            _Prompt(self, index, prompt, seed, max_new_tokens)
            for index, (prompt, seed) in enumerate(zip(ids, seeds, strict=True))
        ]
        scheduler: Scheduler[_Prompt] = Scheduler(
            self._loaded, options.decoding, [LiveGuard(self._loaded, StepSignals())]
        )
        for task in tasks:
            scheduler.submit([task])
        finished: dict[int, Row] = {}
        while not scheduler.idle:
            for event in scheduler.step().events:
                if isinstance(event, Refused):
                    raise self._refusal(event)
                finished[event.task.index] = event.row
        return [finished[task.index] for task in tasks]

    def submission(self, index: int, ids: Sequence[int], seed: int, new: int) -> Submission:
        """One prompt, compressed whole, as kvpress does around `generate`."""
        nominal = self.press.nominal
        return Submission(
            PromptParts(list(ids), []),
            self.press,
            type(self.press.press).__name__,
            max(1, int(len(ids) * nominal)),
            new,
            seed,
            watched=self._policy.config.needs_hazard,
            guard=partial(SequenceGuard, self._policy, self._guard, nominal, str(index)),
        )

    def _refusal(self, refused: "Refused[_Prompt]") -> Exception:
        error, prompt = refused.error, refused.task
        if not (refused.by_press and isinstance(error, AssertionError | ValueError)):
            return error
        name = type(self.press.press).__name__
        return ArgumentError(
            f"press={name}: refuses prompt {prompt.index} of {len(prompt.ids)} tokens: "
            f"{first_line(error)}"
        )


class _Prompt(Task):
    """A prompt of a call, by its place in the batch."""

    bytes = 0  # the caller's memory: nothing waits for it

    def __init__(
        self, guarded: GuardedModel, index: int, ids: Sequence[int], seed: int, new: int
    ) -> None:
        self.guarded, self.index, self.ids, self.seed, self.new = guarded, index, ids, seed, new

    def submission(self) -> Submission:
        return self.guarded.submission(self.index, self.ids, self.seed, self.new)


def _check_model(model: Any) -> None:
    """Raises `ArgumentError` for a model whose sequences cannot be guarded."""
    name = type(model).__name__
    if not isinstance(model, PreTrainedModel):
        raise ArgumentError(
            f"model={name}: is not a transformers model; give what "
            "AutoModelForCausalLM.from_pretrained(...) returns"
        )
    if (obstacle := ragged_obstacle(model)) is not None:
        raise ArgumentError(f"model={name}: cannot be guarded: it has {obstacle}")
    if not layers_of(model).full:
        raise ArgumentError(
            f"model={name}: has no layer of full attention, and windows are not compressed here"
        )
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise ArgumentError(f"model={name}: is spread over devices; load it on one")


def _check_press(press: Any, model: Any) -> None:
    """Raises `ArgumentError` for a press that cannot be used on this model."""
    layers, name = layers_of(model), f"press={type(press).__name__}"
    if packs(press) and (len(layers.full) < len(layers.cached) or layers.recurrent):
        raise ArgumentError(
            f"{name}: moves what it keeps to other positions, and {type(model).__name__} has "
            "layers with a window or a state, which do not follow; use another press"
        )
    try:
        deepcopy(press).post_init_from_model(model)
    except Exception as error:
        raise ArgumentError(
            f"{name}: cannot be used with {type(model).__name__}: {first_line(error)}"
        ) from error


def _check_cache(arguments: Mapping[str, Any], config: Any) -> None:
    """Raises `ArgumentError` for a cache that transformers did not make itself."""
    if (given := given_cache(arguments)) is None:
        return
    name, cache = given
    if (asked := getattr(config, "cache_implementation", None)) is not None:
        raise ArgumentError(
            f"cache_implementation={asked}: does not work under a guard (it is what makes "
            f"{name} a {type(cache).__name__}); {OWN_CACHE}"
        )
    check_arguments({name: cache})


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _result(row: Row) -> Guarded:
    assert row.guard is not None
    assert row.origin is not None
    source = row.origin.source
    return row.guard.result(0 if source is None else source.bytes)
