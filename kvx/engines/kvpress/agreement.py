"""Whether kvpress's recomputed queries, keys and angles are the model's, measured once per model.

One forward pass over a short prompt of random tokens. Every layer with full attention compares what
kvpress computes from its hidden states with what its attention function was given.
"""

import contextlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import kvpress
import torch
from kvpress.utils import get_prerope_key_states

from kvx.config.folders import cache_dir
from kvx.data.model_attention import ANGLES, KEYS, OUTPUT, QUERIES, RECOMPUTED
from kvx.engines.kvpress.architecture import decoder_of
from kvx.engines.kvpress.head_size import with_head_size
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.measure import clear_masks
from kvx.engines.kvpress.memory import OUT_OF_MEMORY
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.parts import parts_of
from kvx.engines.kvpress.queries import ServedLayer
from kvx.engines.kvpress.replacing import attribute
from kvx.engines.kvpress.rotary_call import same_tensors
from kvx.engines.kvpress.seen import Sight
from kvx.errors import first_line

log = logging.getLogger(__name__)

TOKENS, WINDOW = 48, 24
FORMAT = 1  # of the remembered files
# relative differences that are rounding, by type of the weights
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 1e-2}
OTHER_TOLERANCE = 4e-2  # bfloat16

# take attention weights where there are any
READING = ("SnapKVPress", "PyramidKVPress", "TOVAPress", "FinchPress")
SAID = {
    QUERIES: "queries",
    KEYS: "keys",
    ANGLES: "rotations",
    OUTPUT: "projected values",
}


# of a model whose attention is called by other means than transformers' interface
UNSEEN = {
    what: f"kvpress's {said} cannot be compared with the model's, whose attention is its own"
    for what, said in SAID.items()
}


@dataclass(frozen=True)
class Agreement:
    """How kvpress's attention differs from the model's, per layer with full attention.

    `per_layer`: the largest difference of attention weights in a window's rows; infinite where
    kvpress cannot compute them. `reasons`: why what a press recomputes (`QUERIES` and the others)
    is not the model's; it has no entry for what is, to rounding.
    """

    per_layer: dict[int, float]
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def seen(self) -> bool:
        """Whether the model's own queries are to be had."""
        return bool(self.per_layer)

    def against(self, press: Any, weights: bool = False) -> str | None:
        """Why `press` would rank by something else than the model's attention; None if not.

        With `weights`, it is given the attention weights that the model computed.
        """
        used = recomputed(press, weights)
        told = [self.reasons[what] for what in used if what in self.reasons]
        return "; ".join(dict.fromkeys(told)) or None


def recomputed(press: Any, weights: bool = False) -> list[str]:
    """What `press` and those it wraps compute from hidden states, if anything.

    With `weights`, they are given attention weights, and some need no queries then.
    """
    found: list[str] = []
    for part in parts_of(press):
        for name, what in RECOMPUTED.items():
            if isinstance(part, getattr(kvpress, name, ())) and not (weights and name in READING):
                found += what
                if name == "ExpectedAttentionStatsPress":
                    break  # its queries come from files
    return list(dict.fromkeys(found))


_known: WeakKeyDictionary[Any, Agreement] = WeakKeyDictionary()


def agreement(loaded: LoadedModel) -> Agreement:
    """Measured once per model, and remembered in kvx's cache folder by the model's content."""
    return agreement_of(loaded.model, _file(loaded))


def agreement_of(model: Any, file: Path | None = None) -> Agreement:
    """Measured once per model, and remembered in `file`."""
    if model not in _known:
        found = None if file is None else _read(file)
        if found is None:
            found = measure(model)
            if file is not None:
                _write(file, found)
        _known[model] = found
    return _known[model]


def _file(loaded: LoadedModel) -> Path | None:
    if loaded.content is None or len(loaded.devices) > 1:
        return None
    stack = f"{version('kvpress')}-{version('transformers')}"
    kind = str(loaded.model.dtype).removeprefix("torch.")
    return cache_dir() / "agreement" / f"{loaded.content}-{kind}-{stack}-{FORMAT}.json"


def _read(file: Path) -> Agreement | None:
    try:
        plain = json.loads(file.read_text())
        per_layer = {int(index): float(value) for index, value in plain["per_layer"].items()}
        return Agreement(per_layer, dict(plain["reasons"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # measured again


def _write(file: Path, found: Agreement) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(asdict(found)))
        part.replace(file)
    except OSError as error:
        log.debug("kvx: %s is not remembered: %s", file.name, error)  # it is measured again


@torch.no_grad()
def measure(model: Any) -> Agreement:
    """One forward pass over `TOKENS` random tokens. Raises what the model raises."""
    config = model.config.get_text_config()
    compared = _Compared(model, config, Sight(model))
    device = model.get_input_embeddings().weight.device
    ids = _random_ids(model.config, config.vocab_size).to(device)
    full = layers_of(model).full or layers_of(model).cached.values()
    modules = [layer.attention for layer in full]
    if not modules:
        modules = [module for module in model.modules() if hasattr(module, "layer_idx")]
    handles = [
        module.register_forward_hook(compared.hook, with_kwargs=True)
        for module in {id(module): module for module in modules}.values()
    ]
    try:
        with compared.sight.open(), with_head_size(model):
            model(input_ids=ids[None], use_cache=False, logits_to_keep=1)
    finally:
        for handle in handles:
            handle.remove()
        clear_masks(model)  # what kvpress's attention notes
    return Agreement(compared.per_layer, compared.told() if compared.per_layer else UNSEEN)


def _random_ids(config: Any, vocabulary: int) -> torch.Tensor:
    """`TOKENS` ordinary tokens: none that stands for an image or ends a text."""
    named = [v for n, v in vars(config).items() if n.endswith(("_token_id", "_token_index"))]
    special = torch.tensor([v for v in named if isinstance(v, int)], dtype=torch.long)
    ids = torch.randperm(vocabulary, generator=torch.Generator().manual_seed(0))
    ids = ids[~torch.isin(ids, special)]
    return ids.repeat(TOKENS // len(ids) + 1)[:TOKENS]


class _Compared:
    """A hook behind every attention module, and what the layers have shown so far."""

    def __init__(self, model: Any, config: Any, sight: Sight) -> None:
        self.sight = sight
        self.per_layer: dict[int, float] = {}
        self._failed: dict[str, str] = {}
        self._unknown: dict[str, str] = {}
        self._off: dict[str, float] = {}
        self._rule = ""
        self._rotary = getattr(decoder_of(model), "rotary_emb", None)
        self._tolerance = TOLERANCE.get(model.dtype, OTHER_TOLERANCE)
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("llama_4_scaling_beta"):
            self._rule = "kvpress's queries lack the model's scale by position"

    def hook(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        try:
            seen = self.sight.of(module)
        except LookupError:
            return  # no attention
        index = module.layer_idx
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        layer, angles = ServedLayer(seen, hidden), kwargs.get("position_embeddings")
        with _rotary_at(module, self._rotary):
            self.per_layer[index] = self._weights(layer, angles)
            self._own(KEYS, _keys, lambda: layer.prerope_keys(hidden), layer)
            self._own(ANGLES, _rotation, lambda: layer.mean_rotation(TOKENS, TOKENS), layer)
            self._own(OUTPUT, _norms, lambda: layer.projected_norm(seen.value), layer)

    def told(self) -> dict[str, str]:
        """By what is compared: why kvpress's is not the model's."""
        found = {QUERIES: self._rule} if self._rule else {}
        for what, off in self._off.items():
            if off > self._tolerance:
                found[what] = f"kvpress's {SAID[what]} differ from the model's by {off:.0%}"
        shown = max(self.per_layer.values(), default=0.0)
        if QUERIES in found and math.isfinite(shown):
            found[QUERIES] += f"; attention weights differ by up to {shown:.2g} in {TOKENS} tokens"
        for what, said in self._failed.items():
            found[what] = f"kvpress cannot make {SAID[what]} of this model ({said})"
        for what, said in self._unknown.items():
            found[what] = f"kvpress's {SAID[what]} cannot be compared with the model's ({said})"
        return found

    def _weights(self, layer: ServedLayer, angles: Any) -> float:
        """The largest difference of attention weights in the window."""
        seen = layer.seen
        if seen.softcap is not None:
            self._rule = "kvpress's attention lacks the model's cap on logits"
        if seen.sinks is not None:
            self._rule = "kvpress's attention lacks the model's sinks"
        self._compare(QUERIES, lambda: _queries(layer, angles), seen.normalised)
        try:
            theirs = kvpress.SnapKVPress.compute_window_attention(
                seen.module, layer.hidden, seen.key, WINDOW, angles
            )
        except Exception:  # noqa: BLE001  `_compare` has told why
            return math.inf
        own = layer.window_attention(layer.hidden, seen.key, WINDOW)
        return float((own.float() - theirs.float()).abs().max())

    def _own(
        self,
        what: str,
        theirs: Callable[[ServedLayer], torch.Tensor],
        own: Callable[[], torch.Tensor],
        layer: ServedLayer,
    ) -> None:
        try:
            known = own()
        except OUT_OF_MEMORY:
            raise
        except Exception as error:  # noqa: BLE001  a rotary embedding of another kind
            self._unknown[what] = first_line(error)
        else:
            self._compare(what, lambda: theirs(layer), known)

    def _compare(self, what: str, theirs: Callable[[], torch.Tensor], own: torch.Tensor) -> None:
        try:
            made = theirs().float()
            if made.shape != own.shape:
                raise ValueError(f"{list(made.shape)} instead of {list(own.shape)}")
        except Exception as error:  # noqa: BLE001  kvpress fails in many ways on other families
            self._failed.setdefault(what, first_line(error))
            return
        off = float((made - own.float()).norm() / own.float().norm().clamp_min(1e-12))
        self._off[what] = max(self._off.get(what, 0.0), off)


def _queries(layer: ServedLayer, angles: Any) -> torch.Tensor:
    press = kvpress.ThinKPress(window_size=TOKENS)
    found: torch.Tensor = press.compute_window_queries(layer.seen.module, layer.hidden, angles)
    return found


def _keys(layer: ServedLayer) -> torch.Tensor:
    found: torch.Tensor = get_prerope_key_states(layer.seen.module, layer.hidden)
    return found


def _rotation(layer: ServedLayer) -> torch.Tensor:
    press, size = kvpress.ExpectedAttentionPress(n_future_positions=TOKENS), layer.rotation.width
    eye = torch.eye(size, device=layer.hidden.device)
    found: torch.Tensor = press.apply_avg_rope(layer.seen.module, eye, None, TOKENS)[0]
    return found


def _norms(layer: ServedLayer) -> torch.Tensor:
    found: torch.Tensor = kvpress.CriticalKVPress.vwl1norm(layer.seen.value, layer.seen.module)
    return found


@contextlib.contextmanager
def _rotary_at(module: Any, rotary: Any) -> Iterator[None]:
    """Where kvpress reads it; asked for other positions, the model's own stays what it is."""
    if rotary is None:
        yield
        return
    with attribute(module, "rotary_emb", same_tensors(rotary)):
        yield
