"""`head_dim` in a model's configuration, where presses of kvpress read it."""

import contextlib
from collections.abc import Iterator
from typing import Any

from kvx.engines.kvpress.replacing import attribute


@contextlib.contextmanager
def with_head_size(model: Any) -> Iterator[None]:
    """Set `head_dim` in the model's configuration where it is missing.

    CriticalKV reads it there. Qwen2, among others, has it on its attention modules only.
    """
    config = model.config.get_text_config()
    width, heads = (getattr(config, n, None) for n in ("hidden_size", "num_attention_heads"))
    if getattr(config, "head_dim", None) is not None or not (width and heads):
        yield
        return
    with attribute(config, "head_dim", width // heads):
        yield
