from kvx.engines.guarded import guarded as guarded

__version__: str
