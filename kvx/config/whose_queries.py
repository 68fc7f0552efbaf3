"""Whose queries a press ranks by."""

from enum import Enum


class Queries(Enum):
    """They are the same on families whose attention is Llama's (docs/queries.md)."""

    model = "model"  # those that the model's attention is given: the method as its paper means it
    kvpress = "kvpress"  # those that kvpress recomputes: token for token as kvpress
