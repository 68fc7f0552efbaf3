"""Files as presses of kvpress load them, of the published layouts, in a hub cache on this disk."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kvpress.presses import duo_attention_press
from kvpress.presses.fastkvzip_press import FastKVzipGate
from kvpress.presses.kvzap_press import KVzapConfig, KVzapModel

SINK, RECENT = 4, 16  # of DuoAttention's streaming heads


def snapshot(cache: Path, repository: str) -> Path:
    """The folder of the only commit of a repository in a hub cache."""
    commit = "0" * 40
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    (folder := root / "snapshots" / commit).mkdir(parents=True)
    return folder


def with_files(patch: pytest.MonkeyPatch, cache: Path, model: Any) -> None:
    """Files of KVzap, FastKVzip and DuoAttention for `model`, drawn at random; no network."""
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config, name = model.config, Path(model.config.name_or_path).name
    size, heads, layers = config.hidden_size, config.num_key_value_heads, config.num_hidden_layers
    groups = config.num_attention_heads // heads
    with torch.random.fork_rng():
        torch.manual_seed(0)
        zap = KVzapConfig(input_dim=size, output_dim=heads, n_modules=layers, hidden_dim=8)
        KVzapModel(zap).save_pretrained(snapshot(cache, f"nvidia/KVzap-mlp-{name}"))
        gates = [FastKVzipGate(i, size, heads, groups, torch.float32) for i in range(layers)]
        for gate in gates:
            torch.nn.init.normal_(gate.k_base)
    folder = snapshot(cache, "Jang-Hyun/Fast-KVzip") / name.lower()
    folder.mkdir()
    states = {"module": [gate.state_dict() for gate in gates]}
    torch.save(states, folder / f"q{groups}_dim16_sink16.pt")
    patch.setitem(duo_attention_press.PATTERNS_DICT, config.name_or_path, "pattern")
    scores = np.arange(layers * heads).reshape(layers, heads) / (layers * heads)
    files = {
        "config.json": json.dumps({"sink_size": SINK, "recent_size": RECENT}),
        "full_attention_heads.tsv": "\n".join("\t".join(map(str, row)) for row in scores),
    }

    def get(url: str) -> Any:
        text = files[url.rpartition("/")[2]]
        return SimpleNamespace(text=text, json=lambda: json.loads(text))

    patch.setattr(duo_attention_press.requests, "get", get)
