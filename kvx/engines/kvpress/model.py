"""Loading a transformers model once per process, on the asked device with the asked attention."""

import contextlib
import gc
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from kvx.config.language_model import ModelConfig
from kvx.config.press_choices import PressNeed
from kvx.config.schema import Config
from kvx.data.tokenizer import load_tokenizer, model_hash
from kvx.engines.activity import ACTIVITY
from kvx.engines.kvpress.architecture import decoder_of
from kvx.engines.kvpress.loading import devices_of, load_weights
from kvx.engines.kvpress.transformers_versions import warn_of_untested
from kvx.errors import UserError, first_line
from kvx.guard.signals import thinking_tokens
from kvx.text.reasoning import SPECIAL_TAGS

log = logging.getLogger(__name__)

_loaded: dict[tuple[Any, ...], "LoadedModel"] = {}


@dataclass(frozen=True)
class LoadedModel:
    """A model in use. Only text needs a `tokenizer`; in the library it may be None."""

    model: Any
    tokenizer: Any
    device: torch.device
    stop_ids: frozenset[int]
    # of a model that is spread over several devices: all of them, `device` (of its inputs) first
    spread: tuple[torch.device, ...] = ()
    # the hash of its files, where it was loaded from files
    content: str | None = None
    owned: bool = True  # False: a caller's, whose hooks may change it

    @property
    def devices(self) -> tuple[torch.device, ...]:
        return self.spread or (self.device,)

    def layers(self) -> Counter[torch.device]:
        """How many of the model's layers each device has."""
        if len(self.devices) == 1:
            return Counter([self.device])
        return Counter(next(layer.parameters()).device for layer in self.decoder.layers)

    @cached_property
    def thinking_ids(self) -> frozenset[int]:
        """Tokens at which a model reconsiders (`kvx.guard.signals`); none without a tokenizer."""
        if self.tokenizer is None:
            return frozenset()
        tokenizer, n = self.tokenizer, self.model.config.get_text_config().vocab_size
        return thinking_tokens(lambda i: str(tokenizer.decode([i])), range(n))

    @cached_property
    def tags(self) -> dict[int, str]:
        """Special tokens that mark reasoning (gpt-oss, Mistral, Cohere): decoding drops them."""
        ids = getattr(self.tokenizer, "all_special_ids", None) or []
        names = {i: str(self.tokenizer.convert_ids_to_tokens(i)) for i in ids}
        return {i: n for i, n in names.items() if n in SPECIAL_TAGS and i not in self.stop_ids}

    def text(self, tokens: Sequence[int]) -> str:
        """What `tokens` say: without special tokens, but with those that mark reasoning."""
        pieces: list[str] = []
        begun = 0
        for at, token in enumerate(tokens):
            if token in self.tags:
                pieces += [self._decode(tokens[begun:at]), self.tags[token]]
                begun = at + 1
        return "".join([*pieces, self._decode(tokens[begun:])])

    def _decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True)) if tokens else ""

    @property
    def decoder(self) -> Any:
        """The stack of decoder layers (`layers`, `rotary_emb`), also of a multimodal model."""
        return decoder_of(self.model)

    @cached_property
    def attention(self) -> str:
        """What `model.attn_implementation=auto` is where a press needs no attention weights."""
        has = all(getattr(part, "_supports_sdpa", False) for part in (self.model, self.decoder))
        return "sdpa" if has and not self._caps_logits else "eager"

    def attention_for(self, config: Config) -> str:
        """The attention implementation that a point runs with."""
        asked = resolve_attention(config)
        return self.attention if asked == "auto" else asked

    def set_attention(self, implementation: str) -> None:
        """Switch between attention implementations without loading the model again.

        Raises `UserError` for one that the model does not have.
        """
        wanted = self.attention if implementation == "auto" else implementation
        before = self.model.config._attn_implementation
        if before == wanted:
            return
        field = f"model.attn_implementation={wanted}"
        if wanted == "sdpa" and self._caps_logits:  # transformers 5.2 would leave the cap out
            raise UserError(f"{field}: cannot cap attention logits, as this model does; use auto")
        try:
            self.model.set_attn_implementation(wanted)
        except (ValueError, ImportError) as error:
            raise UserError(f"{field}: {first_line(error)}") from None
        if self.model.config._attn_implementation == before:  # transformers only warns
            kind = type(self.model).__name__
            raise UserError(f"{field}: {kind} has no attention but {before}; use auto")

    @property
    def _caps_logits(self) -> bool:
        text = self.model.config.get_text_config()
        return getattr(text, "attn_logit_softcapping", None) is not None

    @contextlib.contextmanager
    def own_attention(self) -> Iterator[None]:
        """What is set inside this context is the model's attention there only."""
        before = self.model.config._attn_implementation
        try:
            yield
        finally:
            self.set_attention(before)


def resolve_device(name: str) -> torch.device:
    if name != "auto":
        try:
            device = torch.device(name)
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"model.device={name}: {first_line(error)}; use auto, cpu, cuda, cuda:N or mps"
            ) from None
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def resolve_attention(config: Config) -> str:
    """What was asked for; of `auto` eager for a press that needs attention weights."""
    asked = config.model.attn_implementation
    if asked == "auto" and PressNeed.attention_weights in config.press.needs:
        return "eager"
    return asked


def load(config: ModelConfig, content: str | None = None) -> LoadedModel:
    """The model and tokenizer, loaded once per process as long as their files stay what they are.

    `content` is the hash of the files that are meant; None: those of now. Raises `UserError` if the
    model cannot be loaded, or has other files.
    """
    device, content = resolve_device(config.device), content or model_hash(config)
    key = (
        config.path, config.revision, config.dtype, str(device), repr(config.device_map),
        config.trust_remote_code, content,
    )  # fmt: skip
    if key not in _loaded:
        warn_of_untested()
        _loaded.clear()  # one model at a time: two rarely fit
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        tokenizer = load_tokenizer(config)  # what is wrong with it comes before minutes of loading
        log.info("run: loading model %s on %s", config.name, _where(config, device))
        ACTIVITY.say(f"loading the weights of {config.name}")
        model = load_weights(config, device)
        if model_hash(config) != content:
            raise UserError(
                f"model={config.name}: its files changed since this run began; type the command "
                "again"
            )
        stops = _stop_ids(model, tokenizer, config.name)
        found = LoadedModel(
            model, tokenizer, devices_of(model)[0], stops, devices_of(model), content
        )
        found.set_attention("auto")
        _loaded[key] = found
        ACTIVITY.say(f"{config.name} is loaded")
    return _loaded[key]


def _where(config: ModelConfig, device: torch.device) -> str:
    return str(device) if config.device_map is None else f"device_map={config.device_map}"


def _stop_ids(model: Any, tokenizer: Any, name: str) -> frozenset[int]:
    """The tokens that end an answer; none where neither model nor tokenizer names one.

    Raises `UserError` for what can be no token: answers would not end where they should.
    """
    told = model.generation_config.eos_token_id
    if told is None or told == []:
        told = tokenizer.eos_token_id
    stops = [stop for stop in (told if isinstance(told, list) else [told]) if stop is not None]
    n = model.get_input_embeddings().weight.shape[0]
    known = frozenset(s for s in stops if type(s) is int and 0 <= s < n)
    if any(type(stop) is not int for stop in stops) or (stops and not known):
        raise UserError(
            f"model={name}: eos_token_id={told} is none of its {n} tokens; correct it in "
            "generation_config.json, or in config.json where there is no such file"
        )
    if not known:
        log.warning("run: %s names no token that ends an answer", name)
    return known
