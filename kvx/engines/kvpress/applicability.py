"""What a press cannot do on a model, known before any weight is read.

A press's YAML names what it `requires` of a model; `skeleton.py` finds out, from the model's
configuration, what of it is missing. That takes seconds, so it is kept on disk for each
configuration, transformers and kvx: a plan needs no torch the second time.
"""

import json
import logging
import os
from functools import lru_cache
from importlib.metadata import version

from kvx.config.folders import cache_dir
from kvx.config.model_features import ModelFeature
from kvx.config.schema import Config, ModelConfig, PressConfig, PressNeed
from kvx.data.model_folder import files_of
from kvx.errors import UserError
from kvx.identity.hashing import digest, package_digest, sha256_file

log = logging.getLogger(__name__)
FOLDER = "features"
# beside the features: why there is no attention but eager, or no cache of transformers' layers
SDPA, LAYERED_CACHE = "sdpa", "layered_cache"

# what a press does not compute itself with press.queries=model
HINT = "; press.queries=model does not"
OF_QUERIES = {
    ModelFeature.queries, ModelFeature.window_attention, ModelFeature.projected_keys,
    ModelFeature.future_rotary, ModelFeature.output_projection,
}  # fmt: skip
# what the press does with a feature, before the model's reason not to have it
DOES = {
    ModelFeature.full_layers: "compresses layers that hold the whole prompt",
    ModelFeature.queries: "recomputes queries as kvpress does",
    ModelFeature.window_attention: "recomputes queries as kvpress does",
    ModelFeature.projected_keys: "recomputes keys before their rotary embedding",
    ModelFeature.future_rotary: "rotates queries to positions that are still to come",
    ModelFeature.output_projection: "reads the output projection of each layer",
    ModelFeature.head_size: "takes keys and values of one size",
    ModelFeature.no_weights: "takes no attention weights",
    ModelFeature.uniform_layers: "scores the whole prompt in every layer",
    ModelFeature.replay: "runs the prompt again with kvpress's own code",
}


def not_applicable(config: Config) -> str | None:
    """Why the press of `config` cannot be used on its model, in one line; None if it can.

    None also where that is not known: a model that cannot be built from its configuration is
    refused, with the reason, when it is loaded.
    """
    if config.press.method is None or config.budget.is_full:
        return None
    missing = missing_of(config.model)
    return None if missing is None else reason(config.press, config.model, missing)


def reason(press: PressConfig, model: ModelConfig, missing: dict[str, str]) -> str | None:
    """Why `press` cannot be used on a model that lacks what `missing` names; None if it can."""
    needs = set(press.needs)
    only_eager = _only_eager(model, missing)
    if only_eager is not None and PressNeed.masks in needs:
        return f"it hides entries inside the attention function, but {only_eager}"
    if PressNeed.masks in needs and LAYERED_CACHE in missing:
        return f"it hides entries by kvpress's own hook, but {missing[LAYERED_CACHE]}"
    eager = only_eager is not None or PressNeed.attention_weights in needs
    met = _met_by_queries(press)
    if eager:  # it hands the model's own weights to the press
        met.add(ModelFeature.window_attention)
    if getattr(getattr(press, "layers", None), "name", "full") == "all":
        met.add(ModelFeature.full_layers)
    for feature in (ModelFeature.full_layers, *press.requires):
        why = only_eager if feature is ModelFeature.no_weights else missing.get(feature.name)
        if why is not None and feature not in met:
            hint = HINT if feature in OF_QUERIES and hasattr(press, "queries") else ""
            return f"it {DOES[feature]}, but {why}{hint}"
    return None


def _met_by_queries(press: PressConfig) -> set[ModelFeature]:
    """What a press need not find in a model, because kvx hands it the model's own queries."""
    queries = getattr(press, "queries", None)
    if queries is None or queries.name != "model":
        return set()
    handed = OF_QUERIES & set(press.requires)
    # then kvx also takes care of the sizes of heads
    return handed | {ModelFeature.head_size} if handed else set()


def _only_eager(model: ModelConfig, missing: dict[str, str]) -> str | None:
    """Why the model attends with eager attention, whatever a press needs; None if it does not."""
    if model.attn_implementation == "eager":
        return "model.attn_implementation=eager hands out weights"
    return missing.get(SDPA) if model.attn_implementation == "auto" else None


def missing_of(model: ModelConfig) -> dict[str, str] | None:
    """By name, the features that a model lacks and why; None if its files do not tell."""
    try:
        files = files_of(model)
        said = sha256_file(files.gguf or files.folder / "config.json")
    except (UserError, OSError):
        return None
    key = digest([said, version("transformers"), package_digest(), model.trust_remote_code], 24)
    return _missing(model.path, model.revision, model.trust_remote_code, key)


@lru_cache(maxsize=64)
def _missing(path: str, revision: str | None, trust: bool, key: str) -> dict[str, str] | None:
    file = cache_dir() / FOLDER / f"{key}.json"
    try:
        found: dict[str, str] = json.loads(file.read_text())
    except (OSError, ValueError):
        pass
    else:
        return found
    from kvx.engines.kvpress.skeleton import has_layered_cache, missing_features, skeleton_of

    asked = ModelConfig(name="", path=path, revision=revision, trust_remote_code=trust)
    try:
        model = skeleton_of(asked)
    except Exception as error:  # noqa: BLE001  loading it says what is wrong
        log.debug("%s: nothing is known from its configuration (%s)", path, error)
        return None
    found = {feature.name: why for feature, why in missing_features(model).items()}
    if not getattr(model, "_supports_sdpa", True):
        found[SDPA] = f"{type(model).__name__} has only eager attention, which hands out weights"
    if not has_layered_cache(model):
        found[LAYERED_CACHE] = f"{type(model).__name__} has a cache of another kind"
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(found))
        temporary.replace(file)
    except OSError as error:
        log.debug("%s: cannot be written (%s); it is found out again next time", file, error)
    return found
