from kvx.engines.guarded import guarded as guarded
from kvx.experiment import sweep as sweep
from kvx.scoring.metrics import metric as metric

__version__: str
