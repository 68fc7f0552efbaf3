"""From a model's files to a transformers model: adapters merged, weights checked, devices spread.

What transformers only warns of is an error here (weights that are missing or not used): a model
with a random layer would still answer.
"""

import logging
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kvx.config.language_model import ModelConfig
from kvx.data.model_checks import check_files, check_libraries
from kvx.data.model_folder import (
    ModelFiles,
    files_of,
    hub_id_of,
    loading_reason,
    read_json,
)
from kvx.data.model_identity import ADAPTER
from kvx.data.model_kind import check_kind
from kvx.engines.kvpress.architecture import auto_class, check_structure, open_to_presses
from kvx.errors import UserError

# buffers of older checkpoints that every model computes itself
COMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|masked_bias|attn\.bias|attention\.bias)$")
SHOWN = 3

log = logging.getLogger(__name__)


def load_weights(config: ModelConfig, device: torch.device) -> Any:
    """The model on its device or devices, ready to generate. Raises `UserError`."""
    files = files_of(config)
    check_kind(files, config.name)
    check_files(files, config.name)
    check_libraries(files, config.name)
    model = _from_pretrained(config, files, device)
    if files.adapter is not None:
        log.info("run: merging the adapter in %s into its base", files.adapter)
        model = _merged(model, files.adapter, config.name)
    if config.device_map is None and not _is_quantised(model):
        try:
            model.to(device)
        except torch.OutOfMemoryError:
            raise UserError(
                f"model={config.name}: does not fit on {device}; use a smaller dtype "
                "(model.dtype=bfloat16), or spread it (model.device_map=auto)"
            ) from None
    _refuse_offloaded(model, config)
    return model.eval()


def devices_of(model: Any) -> tuple[torch.device, ...]:
    """Where the model's layers are, the embedding's device first."""
    first: torch.device = model.get_input_embeddings().weight.device
    return tuple(dict.fromkeys([first, *(p.device for p in model.parameters())]))


def _from_pretrained(config: ModelConfig, files: ModelFiles, device: torch.device) -> Any:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    source: Any = files.hub or files.folder
    extra: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    if files.hub is not None:
        extra["revision"] = files.revision
    if files.gguf is not None:
        extra["gguf_file"] = files.gguf.name
    own, auto = _known_class(config, source, extra)
    where = config.device_map
    if where is None and files.gguf is None and "quantization_config" in files.read_config():
        where = {"": str(device)}  # quantised weights cannot be moved later
    if where is not None:
        extra["device_map"] = dict(where) if isinstance(where, Mapping) else where
    try:
        model, found = auto.from_pretrained(
            source,
            config=own,
            dtype=config.dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **extra,
        )
    except UserError:
        raise
    except Exception as error:  # transformers and its libraries raise many kinds of errors
        raise UserError(
            f"model={config.name}: cannot be loaded: {loading_reason(error)}"
        ) from error
    _check_fit(model, found, config.name)
    _check_finite(model, config.name)
    _check_quantised(model, config.name)
    open_to_presses(model)
    if (hub_id := hub_id_of(files)) is not None:
        model.config.name_or_path = hub_id  # some presses look up files by it
    return model


def _known_class(config: ModelConfig, source: Any, extra: Mapping[str, Any]) -> tuple[Any, Any]:
    """The model's configuration and its Auto class, before any weight is read."""
    from transformers import AutoConfig

    try:
        own = AutoConfig.from_pretrained(source, **extra)
    except Exception as error:  # transformers and a model's own code raise many kinds of errors
        raise UserError(
            f"model={config.name}: cannot be loaded: {loading_reason(error)}"
        ) from error
    try:
        auto = auto_class(own)
        check_structure(auto, own)
    except UserError as error:
        raise UserError(f"model={config.name}: {error}") from None
    return own, auto


def _check_fit(model: Any, found: Mapping[str, Any], name: str) -> None:
    """Raises `UserError` where weights and configuration do not describe the same model."""
    if wrong := sorted(map(_shapes, found.get("mismatched_keys") or ())):
        raise UserError(
            f"model={name}: its weights have other shapes than its config.json says: "
            f"{_some(wrong)}; fetch both from one place"
        )
    if missing := sorted(found.get("missing_keys") or ()):
        raise UserError(
            f"model={name}: its files hold no weights for {_some(missing)}, which would be random; "
            "fetch them again, or correct config.json"
        )
    if unused := sorted(_unused(model, found.get("unexpected_keys") or ())):
        raise UserError(
            f"model={name}: its files hold weights that its config.json leaves out: "
            f"{_some(unused)}; fetch both from one place"
        )


def _check_finite(model: Any, name: str) -> None:
    """Raises `UserError` for weights that are NaN or infinite: every answer would be one token."""
    broken = [n for n, p in model.named_parameters() if not _is_finite(p)]
    if broken:
        raise UserError(
            f"model={name}: its files hold NaN or infinite weights in {_some(broken)}; fetch them "
            "again, or set model.dtype if they are too large for it"
        )


def _is_finite(weight: torch.Tensor) -> bool:
    """Read once, without a copy. Narrower types are parts of a quantised weight."""
    if weight.is_meta or not weight.is_floating_point() or weight.element_size() < 2:
        return True
    return weight.numel() == 0 or all(bool(t.isfinite()) for t in weight.detach().aminmax())


def _check_quantised(model: Any, name: str) -> None:
    """Raises `UserError` for a quantisation that transformers does not know, and so left out."""
    settings = getattr(model.config, "quantization_config", None)
    if settings and not _is_quantised(model):
        method = settings.get("quant_method") if isinstance(settings, Mapping) else settings
        raise UserError(
            f"model={name}: is quantised by {method}, which this transformers does not know; use "
            "another checkpoint, or remove quantization_config from config.json if it is not"
        )


def _unused(model: Any, names: Iterable[str]) -> list[str]:
    """Unused weights that belong to the model: further layers, biases.

    Others (a vision tower, a head for another task, layers that predict further tokens) do not
    belong to a causal language model.
    """
    modules = {name for name, _ in model.named_modules()}
    text = model.config.get_text_config()
    n, ahead = text.num_hidden_layers, getattr(text, "num_nextn_predict_layers", None) or 0
    found = []
    for name in names:
        parent = name.rpartition(".")[0]
        layer = re.match(r"(.*\blayers)\.(\d+)\.", name)
        if COMPUTED.search(name):
            continue
        if layer is not None and layer[1] in modules and int(layer[2]) >= n:
            if int(layer[2]) >= n + ahead:
                found.append(name)
        elif parent and parent in modules and layer is not None:
            found.append(name)
    return found


def _shapes(mismatch: Sequence[Any]) -> str:
    name, held, wanted = mismatch
    return f"{name} {list(held)} instead of {list(wanted)}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _merged(model: Any, adapter: Path, name: str) -> Any:
    """The model with an adapter merged into its weights: presses read them. Raises `UserError`."""
    try:
        with warnings.catch_warnings(action="ignore"):  # missing weights are reported below
            tuned, misfits = _tuned(model, adapter)
            merged = None if misfits else tuned.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft and torch raise many kinds of errors
        raise UserError(
            f"model={name}: the adapter in {adapter} cannot be merged into its base: "
            f"{loading_reason(error)}"
        ) from error
    if misfits:
        base = read_json(adapter / ADAPTER).get("base_model_name_or_path")
        raise UserError(
            f"model={name}: the adapter does not fit its base ({base}): {_some(misfits)}"
        )
    return merged


def _tuned(model: Any, adapter: Path) -> tuple[Any, list[str]]:
    """Peft's model, and the weights that the adapter lacks or, if none, has too many."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    weights = load_peft_weights(str(adapter), device="cpu")
    # an adapter that was trained with more tokens brings its own embedding
    rows = [w.shape[0] for key, w in weights.items() if key.endswith("embed_tokens.weight")]
    if rows and rows[0] != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(rows[0], mean_resizing=False)
    tuned = PeftModel.from_pretrained(model, str(adapter))
    taken = set(get_peft_model_state_dict(tuned))
    return tuned, sorted(taken - set(weights)) or sorted(set(weights) - taken)


def _is_quantised(model: Any) -> bool:
    return getattr(model, "hf_quantizer", None) is not None


def _refuse_offloaded(model: Any, config: ModelConfig) -> None:
    """Raises `UserError` where weights are not on a device that computes: presses read them."""
    placed = getattr(model, "hf_device_map", None) or {}
    away = sorted({str(d) for d in placed.values()} & {"disk"})
    if away or any(p.device.type == "meta" for p in model.parameters()):
        where = away[0] if away else "the CPU, to be fetched when they are needed"
        raise UserError(
            f"model.device_map={config.device_map}: puts layers of model={config.name} on {where}; "
            "presses read the weights, so give it devices that hold all, or a smaller model.dtype"
        )
