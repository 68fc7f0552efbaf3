"""Are the weights of a model's folder all there and whole? Known from sizes and headers alone.

A check reads no weights, so it takes milliseconds, and it comes before anything is loaded.
"""

import json
import struct
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kvx.data.model_folder import (
    FETCH_AGAIN,
    WEIGHTS,
    ModelFiles,
    read_json,
    refuse_pointer,
)
from kvx.data.model_identity import ADAPTER
from kvx.errors import UserError

# what a quantised checkpoint needs: modules, and how pip calls them
LIBRARIES = {
    "gptq": (("optimum", "gptqmodel"), "optimum gptqmodel"),
    "awq": (("gptqmodel",), "gptqmodel"),
    "bitsandbytes": (("bitsandbytes",), "bitsandbytes"),
    "bitsandbytes_4bit": (("bitsandbytes",), "bitsandbytes"),
    "bitsandbytes_8bit": (("bitsandbytes",), "bitsandbytes"),
    "compressed-tensors": (("compressed_tensors",), "compressed-tensors"),
    "fp8": (("triton",), "triton"),
    "fbgemm_fp8": (("fbgemm_gpu",), "fbgemm-gpu"),
    "aqlm": (("aqlm",), "aqlm"),
    "quanto": (("optimum",), "optimum-quanto"),
    "eetq": (("eetq",), "eetq"),
    "hqq": (("hqq",), "hqq"),
    "torchao": (("torchao",), "torchao"),
    "vptq": (("vptq",), "vptq"),
    "spqr": (("spqr_quant",), "spqr_quant[gpu]"),
    "quark": (("quark",), "amd-quark"),
    "auto-round": (("auto_round",), "auto-round"),
    "higgs": (("flute",), "flute-kernel"),
}


def check_files(files: ModelFiles, name: str) -> None:
    """Raises `UserError` for files that are missing, cut off, or pointers.

    Only of local models: the hub checks what it gives.
    """
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
    _check_folder(files.folder, name)


def _check_folder(folder: Path, name: str) -> None:
    found = next((folder / w for w in WEIGHTS if (folder / w).exists()), None)
    if found is None:
        others = sorted(f.name for f in folder.glob("*.safetensors"))
        instead = f" ({', '.join(others[:3])} is not what transformers looks for)" if others else ""
        raise UserError(f"model={name}: no {WEIGHTS[0]} in {folder}{instead}; {FETCH_AGAIN}")
    if found.suffix != ".json":
        _check_file(found)
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
        held = _check_file(folder / shard)
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
    _check_file(found)
    if kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"):
        raise UserError(
            f"model={name}: peft_type={kind} adds tokens of its own to the prompt, of which kvx "
            "knows nothing; use an adapter that can be merged, such as LORA"
        )


def check_libraries(files: ModelFiles, name: str) -> None:
    """Raises `UserError` where a library is missing here for weights of this kind."""
    if files.adapter is not None and find_spec("peft") is None:
        raise UserError(f"model={name}: is an adapter, which needs peft; pip install peft")
    config: dict[str, Any] = {} if files.gguf is not None else files.read_config()
    asked = config.get("quantization_config") or config.get("compression_config")
    if not isinstance(asked, dict):
        return
    method = str(asked.get("quant_method"))
    if method not in LIBRARIES:
        return  # transformers knows it, or says that it does not
    modules, packages = LIBRARIES[method]
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise UserError(
            f"model={name}: its weights are quantised ({method}), which needs {missing[0]}; "
            f"pip install {packages}, or use a checkpoint that is not quantised"
        )


def _check_file(path: Path) -> set[str]:
    """The names of the weights in a file, as far as its header tells. Raises `UserError`."""
    refuse_pointer(path)
    if path.suffix == ".safetensors":
        return _check_safetensors(path)
    with path.open("rb") as file:
        head = file.read(4)
    whole = zipfile.is_zipfile(path)
    if (head.startswith(b"PK") and not whole) or not (whole or head.startswith(b"\x80")):
        raise UserError(f"{path}: is cut off or damaged; {FETCH_AGAIN}")
    return set()


def _check_safetensors(path: Path) -> set[str]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + length > size:
            raise UserError(f"{path}: is cut off or damaged ({size} bytes); {FETCH_AGAIN}")
        try:
            header = json.loads(file.read(length))
            held = {k: v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"}
        except (ValueError, TypeError, KeyError, IndexError, AttributeError):
            raise UserError(f"{path}: is no safetensors file; {FETCH_AGAIN}") from None
    needed = 8 + length + max(held.values(), default=0)
    if size < needed:
        raise UserError(f"{path}: is cut off ({size} of {needed} bytes); {FETCH_AGAIN}")
    return set(held)
