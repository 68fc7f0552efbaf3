"""Folders of tiny models: copies of the embedded one, to be changed or damaged."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from kvx.cli.command import compose
from kvx.config.folders import package_dir
from kvx.config.language_model import ModelConfig

TINY = package_dir() / "assets" / "tiny_recall"
WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 634504\n"
PLAIN_CHAT = "<u>{{ messages[0]['content'] }}</u><a>"
DATED_CHAT = "{{ strftime_now('%d %b %Y') }} <u>{{ messages[0]['content'] }}</u><a>"


def tiny_model(folder: Path, chat_template: Any = None, **config: Any) -> Path:
    """A copy of the embedded model in `folder`, with another chat template or other `config`."""
    shutil.copytree(TINY, folder)
    if chat_template is not None:
        change_json(folder / "tokenizer_config.json", chat_template=chat_template)
    if config:
        change_json(folder / "config.json", **config)
    return folder


def change_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def model_config(path: Path, **fields: Any) -> ModelConfig:
    """The configuration of `model=hf model.path=<path>`, under a short name."""
    typed = compose("model=hf", "model.path=/nowhere").model
    return replace(typed, path=str(path), name="m", **fields)
