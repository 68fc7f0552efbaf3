"""Whether the weights in a model's folder are complete, from sizes and headers alone.

A check reads no weights, so it takes milliseconds; it runs before anything is loaded.
"""

import zipfile
from importlib.util import find_spec
from pathlib import Path

from safetensors import SafetensorError, safe_open

from kvx.data.model_folder import (
    FETCH_AGAIN,
    WEIGHTS,
    ModelFiles,
    read_json,
    refuse_pointer,
)
from kvx.data.model_identity import ADAPTER
from kvx.errors import UserError

FLOATS = ("F64", "F32", "F16", "BF16")


def check_files(files: ModelFiles, name: str) -> None:
    """Raises `UserError` for files of a local model that are missing, cut off, or pointers."""
    if files.gguf is not None:
        files.read_config()  # which checks the file
        return
    if files.adapter is not None:
        _check_adapter(files.adapter, name)
    if files.hub is not None:
        return
    generation = files.folder / "generation_config.json"
    if generation.exists():
        read_json(generation)  # transformers goes on without it, and without its stop tokens
    _check_folder(files.folder, name, "quantization_config" in files.read_config())


def _check_folder(folder: Path, name: str, quantised: bool) -> None:
    found = next((folder / w for w in WEIGHTS if (folder / w).exists()), None)
    if found is None:
        others = sorted(f.name for f in folder.glob("*.safetensors"))
        instead = f" ({', '.join(others[:3])} is not what transformers looks for)" if others else ""
        raise UserError(f"model={name}: no {WEIGHTS[0]} in {folder}{instead}; {FETCH_AGAIN}")
    if found.suffix != ".json":
        _check_file(found, quantised)
        return
    shards = read_json(found).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{found}: has no weight_map; {FETCH_AGAIN}")
    names = sorted({str(shard) for shard in shards.values()})
    missing = [shard for shard in names if not (folder / shard).exists()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"model={name}: {missing[0]}{more} of {len(names)} shards that {found.name} names "
            f"are not in {folder}; {FETCH_AGAIN}"
        )
    for shard in names:
        held = _check_file(folder / shard, quantised)
        absent = [k for k, v in shards.items() if v == shard and held and k not in held]
        if absent:
            raise UserError(
                f"{folder / shard}: does not hold {absent[0]}, which {found.name} says it does; "
                f"{FETCH_AGAIN}"
            )


def _check_adapter(folder: Path, name: str) -> None:
    kind = read_json(folder / ADAPTER).get("peft_type")
    files = [folder / f"adapter_model.{end}" for end in ("safetensors", "bin")]
    found = next((f for f in files if f.exists()), None)
    if found is None:
        raise UserError(f"model={name}: no {files[0].name} in {folder}; {FETCH_AGAIN}")
    _check_file(found, quantised=False)
    if kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"):
        raise UserError(
            f"model={name}: peft_type={kind} adds its own tokens to the prompt, which kvx cannot "
            "follow; use an adapter that can be merged, such as LORA"
        )


def check_libraries(files: ModelFiles, name: str) -> None:
    """Raises `UserError` for an adapter without peft; transformers checks other libraries."""
    if files.adapter is not None and find_spec("peft") is None:
        raise UserError(f"model={name}: is an adapter, which needs peft; pip install peft")


def _check_file(path: Path, quantised: bool) -> set[str]:
    """The names of the weights in a file, if its header tells them.

    Raises `UserError` for a damaged file, and for weights in a quantised type if they are not.
    """
    refuse_pointer(path)
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="numpy") as weights:
                names = set(weights.keys())
                matrices = sorted(n for n in names if n.endswith("_proj.weight"))
                types = {n: weights.get_slice(n).get_dtype() for n in matrices}
        except SafetensorError as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise UserError(f"{path}: is cut off or damaged ({reason}); {FETCH_AGAIN}") from None
        narrow = next((n for n, kind in types.items() if kind not in FLOATS), None)
        if narrow is not None and not quantised:
            raise UserError(
                f"{path}: holds {narrow} as {types[narrow]}, but config.json says nothing of a "
                "quantisation (quantization_config); fetch both from one place"
            )
        return names
    with path.open("rb") as file:
        head = file.read(4)
    whole = zipfile.is_zipfile(path)
    if (head.startswith(b"PK") and not whole) or not (whole or head.startswith(b"\x80")):
        raise UserError(f"{path}: is cut off or damaged; {FETCH_AGAIN}")
    return set()
