"""Configuration of the model: where it is, and how it is loaded."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from kvx.config import field_checks
from kvx.config.fields import option

# of transformers' names those that answer as the model does: paged ones need another cache
ATTENTION = ("auto", "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3")


@dataclass
class ModelConfig:
    """A transformers model: a hub id or a local directory."""

    name: str = option(MISSING, "name of the model in tables", label=True)
    path: str = option(
        MISSING, "hub id or local directory", neutral=True, sweeps=True, derived=True
    )
    revision: str | None = option(None, "branch, tag or commit of a hub id")
    dtype: str = option(
        "auto", "type of weights and cache", choices=("auto", "float32", "bfloat16", "float16")
    )
    device: str = option("auto", "such as cuda:0 or cpu; auto: a GPU if there is one")
    attn_implementation: str = option(
        "auto",
        "as transformers names it; auto: what the press needs and the model has, sdpa before eager",
        choices=ATTENTION,
    )
    max_context_tokens: int | None = option(
        None, "prompt and answer at most; null: the model's limit", at_least=1
    )
    chat_template: bool = option(True, "use the tokenizer's template, if it has one")
    device_map: Any = option(
        None,
        "several devices for one model, as accelerate names them: auto, balanced, or a mapping",
        recorded=True,
        added=True,
        check=field_checks.devices,
    )
    trust_remote_code: bool = option(
        False, "run Python files that lie in the model's folder", added=True
    )
