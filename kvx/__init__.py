"""kvx: which KV-cache compressor to use.

At which budget, up to which context length, and how sure we are.
"""

__version__ = "0.1.0"
