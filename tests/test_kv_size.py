"""Bytes that a prompt is said to take before it runs, beside what transformers' cache then has."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kvx.data.kv_layout import KVLayout, kv_layout
from kvx.engines.kvpress import layers
from kvx.engines.kvpress.layers import layers_of
from kvx.engines.kvpress.skeleton import caches_latents
from kvx.engines.kvpress.states import holds_layers, new_cache, states_of
from tests.families import WINDOW, available, make
from tests.models import model_config

FAMILIES = (
    "llama", "qwen2_window", "gemma3", "gemma3n", "deepseek_v2", "deepseek_v3", "qwen3_next",
    "lfm2", "gpt_oss", "llama4", "mistral3", "granite_hybrid", "falcon_h1", "zamba2", "minimax",
)  # fmt: skip


def held(cache: Any) -> int:
    """Bytes of all tensors in a cache."""
    if holds_layers(cache):
        pairs = [(getattr(x, "keys", None), getattr(x, "values", None)) for x in cache.layers]
    else:
        pairs = list(zip(cache.key_cache, cache.value_cache, strict=True))
    tensors = [t for pair in pairs for t in pair if isinstance(t, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in [*tensors, *states_of(cache).values()])


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_a_prompt_takes_the_bytes_it_is_said_to(name: str) -> None:
    if name not in available():
        pytest.skip("not in this transformers")
    model = make(name)
    layers = layers_of(model)
    for n in (WINDOW // 2, WINDOW, 2 * WINDOW + 5):
        cache = new_cache(model)
        model(input_ids=torch.arange(n)[None] % 300, past_key_values=cache, use_cache=True)
        assert layers.entry_bytes * n + layers.row_bytes(n) == held(cache)


def test_latent_attention_is_cached_as_the_installed_transformers_does() -> None:
    """What a config's head_dim and number of KV heads tell is neither."""
    model = make("deepseek_v3")
    config, per_layer = model.config, layers_of(model).entry_bytes / model.config.num_hidden_layers
    keys = config.qk_nope_head_dim + config.qk_rope_head_dim
    of_heads = config.num_attention_heads * (keys + config.v_head_dim)
    latent = config.kv_lora_rank + config.qk_rope_head_dim
    assert per_layer == 4 * (latent if caches_latents(model) else of_heads)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_plan_knows_it_from_the_config_alone(tmp_path: Path, name: str) -> None:
    model = make(name)
    model.config.save_pretrained(tmp_path)
    layers, told = layers_of(model), kv_layout(model_config(tmp_path, dtype="float32"))
    assert told is not None
    for n in (WINDOW // 2, WINDOW, 2 * WINDOW + 5):
        held = layers.row_bytes(n) - layers.state_bytes
        assert told.bytes(n // 3, n) == n // 3 * layers.entry_bytes + held


OLDER = {  # as the families' first checkpoints say it, before `layer_types`
    "gemma2": ({"model_type": "gemma2", "sliding_window": 8}, 2, 2),
    "gemma3": ({"text_config": {"model_type": "gemma3_text", "sliding_window": 8}}, 0, 4),
    "cohere2": ({"model_type": "cohere2", "sliding_window": 8}, 1, 3),
    "mistral": ({"sliding_window": 8}, 0, 4),
    "no window": ({"sliding_window": None}, 4, 0),
    "unused window": ({"sliding_window": 8, "use_sliding_window": False}, 4, 0),
    "qwen": ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, 3, 1),
    "qwen3_next": ({"full_attention_interval": 4}, 1, 0),
    "jamba": ({"attn_layer_period": 2, "attn_layer_offset": 1}, 2, 0),
    "bamba": ({"attn_layer_indices": [1]}, 1, 0),
    "llama4": ({"attention_chunk_size": 8, "no_rope_layers": [1, 1, 1, 0]}, 1, 3),
}


@pytest.mark.parametrize("name", OLDER)
def test_an_older_config_tells_the_kinds_of_its_layers_otherwise(tmp_path: Path, name: str) -> None:
    fields, full, windows = OLDER[name]
    sizes = {
        "num_hidden_layers": 4, "num_attention_heads": 4, "hidden_size": 64, "dtype": "float16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes | fields))
    told, size = kv_layout(model_config(tmp_path)), 2 * 64 * 2
    assert told == KVLayout(full * size, ((size, 8),) * windows)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "lfm2"])
def test_a_cache_that_cannot_be_shared_counts_too(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model whose layers are not known, it is measured what its own cache takes."""
    known = layers_of(make(name))

    def fail(*_: Any, **__: Any) -> None:
        raise TypeError("no such attention")

    monkeypatch.setattr(layers, "_run", fail)
    found = layers_of(make(name))
    assert found.obstacle is not None
    windows = [x.entry_bytes for x in known.cached.values() if x.window is not None]
    assert found.entry_bytes == known.entry_bytes + sum(windows)
    assert found.row_bytes(1000) == known.state_bytes
