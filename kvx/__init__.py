"""kvx: which KV-cache compressor, at which budget, up to which context length, and how sure we are."""

__version__ = "0.1.0"
