"""What a press works on: which layers, and whose queries."""

from enum import Enum


class PressLayers(Enum):
    """Which layers of a model a press compresses, where only some see every token."""

    full = "full"  # those of full attention
    all = "all"  # those with a window too, for prompts that are no longer than it


class Queries(Enum):
    """Whose queries a press ranks by. On families with Llama's attention they are the same."""

    model = "model"  # those that the model's attention is given: the method as its paper means it
    kvpress = "kvpress"  # those that kvpress recomputes: token for token as kvpress
