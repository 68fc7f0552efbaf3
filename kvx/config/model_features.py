"""What presses may require of a model."""

from enum import Enum


class ModelFeature(Enum):
    """What a press reads of a model, or does with it, that not every model has.

    `kvx.engines.kvpress.skeleton` finds out which a model lacks, from its configuration.
    """

    queries = "queries"  # queries recomputed from the hidden states, as kvpress does
    window_attention = "window_attention"  # attention of such queries, unless it is handed weights
    projected_keys = "projected_keys"  # keys before the rotary embedding, from a k_proj
    future_rotary = "future_rotary"  # the rotary embedding of positions that are still to come
    whole_rotation = "whole_rotation"  # keys turned in all dimensions, by one set of frequencies
    equal_sizes = "equal_sizes"  # as head_size, for presses that no padding helps
    output_projection = "output_projection"  # o_proj, from the values of all heads
    head_size = "head_size"  # keys and values of one size, the attention's head_dim
    uniform_layers = "uniform_layers"  # every layer holds entries of its own for the whole prompt
    replay = "replay"  # the prompt run again by kvpress's own code, over its cache
    full_layers = "full_layers"  # any layer that holds the whole prompt; every press requires it
