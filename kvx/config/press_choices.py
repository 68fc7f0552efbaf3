"""What a press needs and keeps, which layers it compresses, and whose queries it ranks by."""

from enum import Enum


class PressLayers(Enum):
    """Which layers of a model a press compresses, where only some see every token."""

    full = "full"  # those of full attention
    all = "all"  # those with a window too, for prompts that are no longer than it


class Queries(Enum):
    """Whose queries a press ranks by. On families with Llama's attention they are the same."""

    model = "model"  # those that the model's attention is given: the method as its paper means it
    kvpress = "kvpress"  # those that kvpress recomputes: token for token as kvpress


class PressNeed(Enum):
    """What a press needs beyond scoring and dropping entries after each layer.

    Presses that only change what stays in the cache share one prefill; the others prefill alone.
    """

    attention_weights = "attention_weights"  # eager attention, which returns them
    changes_forward = "changes_forward"  # what later layers compute is not the full cache's
    masks = "masks"  # entries are hidden from attention, not dropped
    uneven_layers = "uneven_layers"  # layers keep different numbers of entries
    query_in_prompt = "query_in_prompt"  # the question must be in what is compressed


class Keeps(Enum):
    """Whether a press keeps the number of entries that a budget asks for."""

    asked = "asked"  # as many, but for rounding; a point that keeps another number fails
    by_method = "by_method"  # another number, by its method: the point is named by what it kept
