"""A model is left as it was found: a press may not act on what runs after it."""

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Undo what runs in this context does to the model's modules and configurations.

    That is: hooks, submodules and attributes that were added or replaced (kvpress's `rotary_emb`
    and `masked_key_indices`, among others), tensors that were exchanged, and fields of the
    configurations, with the attention implementation. What is written into a tensor stays.
    """
    before = [(content, content.copy()) for content in _contents(model)]
    try:
        yield
    finally:
        for content, copied in before:
            if _differ(content, copied):
                content.clear()
                content.update(copied)


def _contents(model: Any) -> Iterator[dict[Any, Any]]:
    """The dicts with all that the modules and their configurations hold, inner ones first.

    A module keeps its tensors, submodules and hooks in dicts among its attributes.
    """
    configs: dict[int, Any] = {}
    for module in model.modules():
        attributes: dict[Any, Any] = module.__dict__
        yield from (v for v in attributes.values() if isinstance(v, dict))
        yield attributes
        for name in ("config", "generation_config"):
            if (config := attributes.get(name)) is not None:
                configs[id(config)] = config
    for config in list(configs.values()):
        parts = [v for k, v in vars(config).items() if k.endswith("_config")]
        configs |= {id(part): part for part in parts if hasattr(part, "__dict__")}
    yield from (config.__dict__ for config in configs.values())


def _differ(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return now.keys() != before.keys() or any(now[key] is not before[key] for key in before)
