"""The folders of kvx's own files: package, configuration tree, fetched assets."""

import os
from pathlib import Path

import platformdirs


def cache_dir() -> Path:
    """Where fetched models and data live: `KVX_CACHE`, else the user's cache directory."""
    return Path(os.environ.get("KVX_CACHE") or platformdirs.user_cache_dir("kvx", appauthor=False))


def package_dir() -> Path:
    return Path(__file__).parents[1]


def conf_dir() -> Path:
    """The configuration tree: inside the wheel, else beside the package in a checkout."""
    inside = package_dir() / "conf"
    return inside if (inside / "config.yaml").is_file() else package_dir().parent / "conf"
