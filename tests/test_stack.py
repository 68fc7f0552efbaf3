"""kvpress's presses on the installed transformers; CI runs this on the pinned and on the newest."""

import contextlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kvpress
import pytest
import torch
from kvpress import BasePress, KnormPress
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from kvx.config.language_model import ModelConfig
from kvx.data.tokenizer import load_tokenizer
from kvx.engines.kvpress.measure import clear_masks
from kvx.engines.kvpress.transformers_versions import (
    cache_argument,
    kvpress_arguments,
    kvpress_hooks,
    pressing,
    untested,
)
from kvx.errors import ArgumentError
from kvx.guard import guarded
from tests.guarding import a_prompt, options, tiny_model

N = 40


@pytest.fixture
def model() -> Any:
    return tiny_model()


def patched(model: Any) -> list[str]:
    """Methods and attributes that stand on modules instead of their classes."""
    names = {"forward", "register_forward_hook"}
    return [
        str(names & vars(module).keys())
        for module in model.modules()
        if names & vars(module).keys()
    ]


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_see_what_kvpress_reads(model: Any) -> None:
    """The cache by its older name, and where this pass stands in it."""
    seen: list[dict[str, Any]] = []
    cache, ids = DynamicCache(), a_prompt(N)
    attention = model.model.layers[1].self_attn
    with torch.inference_mode(), kvpress_hooks(model):
        handle = attention.register_forward_hook(
            lambda module, args, kwargs, output: seen.append(kwargs), with_kwargs=True
        )
        for part in torch.split(ids, [N - 3, 2, 1], dim=1):
            model(part, **cache_argument(model, cache))
        handle.remove()
    assert [kwargs["past_key_values"] is cache for kwargs in seen] == [True] * 3
    positions = [kwargs["cache_position"].tolist() for kwargs in seen]
    assert positions == [list(range(N - 3)), [N - 3, N - 2], [N - 1]]


def test_arguments_without_a_cache_stay_what_they_are(model: Any) -> None:
    given = {"hidden_states": torch.zeros(1, N, 8), "attention_mask": None}
    assert kvpress_arguments(model.model.layers[0].self_attn, given) == given


def test_nothing_stays_on_the_model(model: Any) -> None:
    before = hooks(model)

    def fails() -> None:
        with pressing(model, KnormPress(0.5)):
            assert patched(model)
            raise RuntimeError("a press that fails")

    with pytest.raises(RuntimeError, match="fails"):
        fails()
    assert patched(model) == []
    assert hooks(model) == before


@pytest.mark.parametrize(
    "press",
    [
        lambda: KnormPress(0.5),
        lambda: kvpress.AdaKVPress(kvpress.SnapKVPress(0.5, window_size=4)),
        lambda: kvpress.KVComposePress(compression_ratio=0.5),
        lambda: kvpress.PrefillDecodingPress(KnormPress(0.5), kvpress.DecodingPress(KnormPress())),
        lambda: kvpress.CAMPress(kvpress.KnormPress(0.0), compression_interval=4, target_size=16),
    ],
    ids=["base", "masks", "forward", "both", "decoding"],
)  # fmt: skip
def test_kvpress_runs_with_generate(model: Any, press: Any) -> None:
    """And says nothing of names that its user did not choose."""
    with warnings.catch_warnings(), pressing(model, press()):
        warnings.simplefilter("error", FutureWarning)
        out = model.generate(**options(a_prompt(N)))
    clear_masks(model)
    assert out.shape[1] > N


@dataclass
class Recent(BasePress):
    """Somebody's press with a context and hooks of its own: it keeps the last entries."""

    kept: int = 7

    @contextlib.contextmanager
    def __call__(self, model: Any) -> Iterator[None]:
        def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
            if kwargs["cache_position"][0] == 0:
                layer = kwargs["past_key_values"].layers[module.layer_idx]
                layer.keys = layer.keys[:, :, -self.kept :]
                layer.values = layer.values[:, :, -self.kept :]

        handles = [
            layer.self_attn.register_forward_hook(hook, with_kwargs=True)
            for layer in model.model.layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def test_a_press_with_hooks_of_its_own_gets_them_too(model: Any) -> None:
    cache = DynamicCache()
    with torch.inference_mode(), pressing(model, Recent()):
        model(a_prompt(N), **cache_argument(model, cache))
        model(a_prompt(1), **cache_argument(model, cache))
    assert [layer.keys.shape[2] for layer in cache.layers] == [8, 8]


class ReadsItsArguments(KnormPress):
    """A press whose `compress` reads what kvpress's hook gets."""

    def compress(
        self, module: Any, hidden: Any, keys: Any, values: Any, w: Any, kwargs: Any
    ) -> Any:
        assert kwargs["cache_position"].tolist() == list(range(hidden.shape[1]))
        assert kwargs["past_key_values"] is not None
        return super().compress(module, hidden, keys, values, w, kwargs)


def test_under_a_guard_as_under_kvpress(model: Any) -> None:
    ids = a_prompt(N)
    with pressing(model, ReadsItsArguments(0.5)):
        theirs = model.generate(**options(ids))
    ours = guarded(model, ReadsItsArguments(0.5), "none").generate(**options(ids))
    assert torch.equal(ours, theirs)


def test_the_cache_argument_goes_by_the_name_that_the_model_has() -> None:
    class Remote(LlamaForCausalLM):
        """A model of `trust_remote_code`, written for an older transformers."""

        def forward(self, input_ids: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
            return super().forward(
                input_ids, **cache_argument(LlamaForCausalLM(self.config), past_key_values)
            )

    sizes = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": 30, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1)
    remote, cache = Remote(config), DynamicCache()
    assert list(cache_argument(remote, cache)) == ["past_key_values"]
    with torch.inference_mode():
        remote(torch.tensor([[1, 2, 3]]), **cache_argument(remote, cache))
    assert cache.get_seq_length() == 3


def test_a_cache_that_its_caller_passed_is_refused(model: Any) -> None:
    """A filled one by whatever name it has here; it is not ignored in silence."""
    ids, guard, cache = a_prompt(N), guarded(model, KnormPress(0.5)), DynamicCache()
    with torch.inference_mode():
        model(ids, **cache_argument(model, cache))
    (name,) = cache_argument(model, cache)
    for given in {name, "past_key_values"}:
        with pytest.raises(ArgumentError, match=f"^{name}: does not work under a guard"):
            model.generate(**options(ids, custom_generate=guard, **{given: cache}))
        with pytest.raises(ArgumentError, match=f"^{given}: does not work under a guard"):
            guard.generate(**options(ids, **{given: cache}))


@pytest.mark.parametrize(
    ("transformers", "press", "tested"),
    [
        ("5.2.0", "0.5.5", True),
        ("5.24.3", "0.5.5", True),
        ("5.10.4", "0.5.5", True),
        ("5.25.0.dev0", "0.5.5", False),
        ("4.57.1", "0.5.5", False),
        ("6.0.0", "0.5.5", False),
        ("5.24.0", "0.5.6", False),
    ],
)
def test_untested_versions_are_named_in_one_line(
    transformers: str, press: str, tested: bool
) -> None:
    line = untested(transformers, press)
    if tested:
        assert line is None
    else:
        assert line is not None
        assert "\n" not in line
        assert transformers in line
        assert press in line


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_tokenizer_is_the_one_in_its_file(tmp_path: Path, kind: str) -> None:
    """transformers 5.24 has a class of its own for Qwen2, and finds next to nothing with it."""
    words = {word: i for i, word in enumerate(["<unk>", "the", "magic", "number", "12"])}
    inside = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inside.pre_tokenizer = Whitespace()
    inside.save(str(tmp_path / "tokenizer.json"))
    config = {"model_type": kind, "vocab_size": len(words)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    model = ModelConfig(name="words", path=str(tmp_path))
    ids = load_tokenizer(model).encode("the number 12", add_special_tokens=False)
    assert ids == [1, 3, 4]
