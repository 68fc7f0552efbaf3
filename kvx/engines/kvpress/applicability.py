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
from kvx.config.language_model import ModelConfig
from kvx.config.model_features import ModelFeature
from kvx.config.numbers import exact
from kvx.config.press_choices import PressLayers, PressNeed, Queries
from kvx.config.schema import BudgetKind, Config, PressConfig
from kvx.data.model_folder import files_of
from kvx.engines.kvpress.needed_files import missing_file
from kvx.engines.kvpress.press import ALONE
from kvx.errors import UserError
from kvx.identity.hashing import digest, package_digest, sha256_file
from kvx.points import Point

log = logging.getLogger(__name__)
FOLDER = "features"
# beside the features: why there is no attention but eager, and why layers are not on their own
SDPA, SEPARATE = "sdpa", "separate_layers"
LATENT = "latent_cache"  # beside them, too: the cache holds no keys and values

# what a press does not compute itself with press.queries=model
HINT = "; press.queries=model does not"
WINDOWS = "; press.layers=all compresses windows too"
OF_QUERIES = {
    ModelFeature.queries, ModelFeature.window_attention, ModelFeature.projected_keys,
    ModelFeature.future_rotary, ModelFeature.output_projection,
}  # fmt: skip
# what kvx cannot hand to a press where the cache holds latents
OF_LATENTS = {
    ModelFeature.queries, ModelFeature.projected_keys, ModelFeature.output_projection,
    ModelFeature.future_rotary, ModelFeature.head_size,
}  # fmt: skip
# what the press does with a feature, before the model's reason not to have it
DOES = {
    ModelFeature.full_layers: "compresses layers that hold the whole prompt",
    ModelFeature.queries: "recomputes queries as kvpress does",
    ModelFeature.window_attention: "recomputes queries as kvpress does",
    ModelFeature.projected_keys: "recomputes keys before their rotary embedding",
    ModelFeature.future_rotary: "rotates queries to positions that are still to come",
    ModelFeature.whole_rotation: "turns keys back to other positions",
    ModelFeature.equal_sizes: "takes keys and values of one size",
    ModelFeature.output_projection: "reads the output projection of each layer",
    ModelFeature.head_size: "takes keys and values of one size",
    ModelFeature.uniform_layers: "scores the whole prompt in every layer",
    ModelFeature.replay: "runs the prompt again with kvpress's own code",
}


def not_applicable(config: Config) -> str | None:
    """Why the press of `config` cannot be used on its model, in one line; None if it can.

    None also where that is not known: a model that cannot be built from its configuration is
    refused, with the reason, when it is loaded.
    """
    press = config.press
    if press.method is None or config.budget.is_full:
        return None
    if PressNeed.query_in_prompt in press.needs and not config.prompt.query_aware:
        return "it needs the question in what is compressed; add prompt.query_aware=true"
    budget, least = config.budget, press.budget_above
    if budget.kind is BudgetKind.ratio and budget.ratio <= least:
        return f"its budgets are above {exact(least)}: it keeps more than that whatever it is asked"
    return reason(press, config.model, missing_of(config.model) or {})


def reason(press: PressConfig, model: ModelConfig, missing: dict[str, str]) -> str | None:
    """Why `press` cannot be used on a model that lacks what `missing` names; None if it can."""
    return obstacle(press, model, missing) or missing_file(press, model)


def obstacle(press: PressConfig, model: ModelConfig, missing: dict[str, str]) -> str | None:
    """The same, as far as it does not depend on files of the hub."""
    if press.refused is not None:
        return f"it {press.refused}"
    attention = model.attn_implementation
    if PressNeed.attention_weights in press.needs and attention not in ("auto", "eager"):
        return (
            "it needs attention weights, but model.attn_implementation="
            f"{attention} returns none; set it to eager or auto"
        )
    if (why := _no_hiding(press, model, missing)) is not None:
        return f"it hides entries from attention, but {why}"
    met = _met_by_queries(press)
    if LATENT in missing:
        met -= OF_LATENTS
    if press.layers is PressLayers.all:
        met.add(ModelFeature.full_layers)
        why = missing.get(ModelFeature.uniform_layers.name)
        if why is not None and ALONE & set(press.needs):
            return f"it compresses layers of full attention only, but {why}; use press.layers=full"
    for feature in (ModelFeature.full_layers, *press.requires):
        if feature.name in missing and feature not in met:
            hint = HINT if feature in OF_QUERIES and press.queries is not Queries.model else ""
            hint = WINDOWS if feature is ModelFeature.full_layers else hint
            return f"it {DOES[feature]}, but {missing[feature.name]}{hint}"
    return None


def _no_hiding(press: PressConfig, model: ModelConfig, missing: dict[str, str]) -> str | None:
    """Why entries cannot be hidden inside the model's attention; None if they can, or are not."""
    if PressNeed.masks not in press.needs:
        return None
    if model.attn_implementation == "eager":
        return "model.attn_implementation=eager has nothing to hide them in"
    if SDPA in missing and model.attn_implementation == "auto":
        return missing[SDPA]
    if LATENT in missing:
        return f"{missing[LATENT]}, which heads share"
    return missing.get(SEPARATE)


def _met_by_queries(press: PressConfig) -> set[ModelFeature]:
    """What a press need not find in a model, because kvx hands it the model's own queries."""
    if press.queries is not Queries.model:
        return set()
    handed = OF_QUERIES & set(press.requires)
    # then kvx also takes care of the sizes of heads
    return handed | {ModelFeature.head_size} if handed else set()


def missing_of(model: ModelConfig) -> dict[str, str] | None:
    """By name, the features that a model lacks and why; None if its files do not tell."""
    try:
        files = files_of(model)
        said = [sha256_file(files.gguf or files.folder / "config.json")]
        if model.trust_remote_code:
            said += [sha256_file(file) for file in sorted(files.folder.glob("*.py"))]
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
    from kvx.engines.kvpress.skeleton import (
        caches_latents,
        missing_features,
        not_separate,
        skeleton_of,
    )

    asked = ModelConfig(name="", path=path, revision=revision, trust_remote_code=trust)
    try:
        model = skeleton_of(asked)
        found = {feature.name: why for feature, why in missing_features(model).items()}
        if caches_latents(model):
            found[LATENT] = "its cache holds latent vectors"
        if (why := not_separate(model)) is not None:
            found[SEPARATE] = why
    except Exception as error:  # noqa: BLE001  loading it says what is wrong
        log.debug("%s: nothing is known from its configuration (%s)", path, error)
        return None
    if not getattr(model, "_supports_sdpa", True):
        found[SDPA] = "the model has eager attention only"
    elif getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        found[SDPA] = "the model caps attention scores, which only eager attention does"
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(found))
        temporary.replace(file)
    except OSError as error:
        log.debug("%s: cannot be written (%s); it is found out again next time", file, error)
    return found


def unfit_prompt(point: Point) -> str | None:
    """Why the press takes not every prompt of the point's manifest; None if it does."""
    press = point.config.press
    if press.method is None or not (press.min_prompt_tokens or press.budget_above):
        return None
    for entry in sorted(point.manifest.entries, key=lambda e: e.compressed_tokens):
        n = entry.compressed_tokens
        if n > press.min_prompt_tokens and not press.budget_above:
            return None
        if n <= press.min_prompt_tokens and point.compression_ratio(n) > 0:
            return (
                f"it needs prompts of more than {press.min_prompt_tokens} tokens, but example "
                f"{entry.example_id} has {n}; lower the press's window or use longer contexts "
                "(dataset.binning.edges)"
            )
        if point.kept_share(n) <= press.budget_above:
            return (
                f"it keeps more than {exact(press.budget_above)} of a prompt whatever it is asked, "
                f"but example {entry.example_id} has {n} tokens"
            )
    return None
