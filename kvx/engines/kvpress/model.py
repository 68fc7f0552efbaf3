"""Loading a transformers model once per process, on the asked device with the asked attention."""

import gc
import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from kvx.config import Config, ModelConfig, PressNeed
from kvx.data.tokenizer import load_tokenizer, model_dir
from kvx.engines.activity import ACTIVITY
from kvx.errors import UserError
from kvx.guard.signals import thinking_tokens

log = logging.getLogger(__name__)

_loaded: dict[tuple[Any, ...], "LoadedModel"] = {}


@dataclass(frozen=True)
class LoadedModel:
    """A model in use. Only text needs a `tokenizer`; in the library it may be None."""

    model: Any
    tokenizer: Any
    device: torch.device
    stop_ids: frozenset[int]

    @cached_property
    def thinking_ids(self) -> frozenset[int]:
        """Tokens at which a model reconsiders (`kvx.guard.signals`); none without a tokenizer."""
        if self.tokenizer is None:
            return frozenset()
        tokenizer, n = self.tokenizer, self.model.config.get_text_config().vocab_size
        return thinking_tokens(lambda i: str(tokenizer.decode([i])), range(n))

    def set_attention(self, implementation: str) -> None:
        """Switch between attention implementations without loading the model again."""
        if self.model.config._attn_implementation != implementation:
            try:
                self.model.set_attn_implementation(implementation)
            except (ValueError, ImportError) as error:
                reason = str(error).splitlines()[0]
                raise UserError(f"model.attn_implementation={implementation}: {reason}") from None


def resolve_device(name: str) -> torch.device:
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"model.device={name}: {reason}; use auto, cpu, cuda, cuda:N or mps"
            ) from None
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def resolve_attention(config: Config) -> str:
    """`auto` is sdpa, but eager for a press that needs attention weights."""
    asked = config.model.attn_implementation
    if asked != "auto":
        return asked
    return "eager" if PressNeed.attention_weights in config.press.needs else "sdpa"


def load(config: ModelConfig) -> LoadedModel:
    """The model and tokenizer, loaded once per process.

    Raises `UserError` if the model cannot be loaded.
    """
    device = resolve_device(config.device)
    key = (config.path, config.revision, config.dtype, str(device))
    if key not in _loaded:
        _loaded.clear()  # one model at a time: two rarely fit
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        log.info("run: loading model %s on %s", config.name, device)
        ACTIVITY.say(f"loading the weights of {config.name}")
        _loaded[key] = _load(config, device)
        ACTIVITY.say(f"{config.name} is loaded")
    return _loaded[key]


def _load(config: ModelConfig, device: torch.device) -> LoadedModel:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    folder = model_dir(config)  # a hub model's weights are not there yet: then ask by its id
    source = folder if any(folder.glob("*.safetensors")) else config.path
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, revision=config.revision, dtype=config.dtype
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model={config.name}: {str(error).splitlines()[0]}") from None
    model.to(device).eval()
    tokenizer = load_tokenizer(config)
    stops = model.generation_config.eos_token_id
    stop_ids = stops if isinstance(stops, list) else [stops]
    if stops is None:
        stop_ids = [tokenizer.eos_token_id]
    return LoadedModel(model, tokenizer, device, frozenset(s for s in stop_ids if s is not None))
