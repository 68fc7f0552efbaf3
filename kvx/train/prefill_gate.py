"""The gate before the first token: the probe's divergence at which a sequence gets more entries.

The probe compares the next-token distributions of the full and of the compressed cache. Nothing is
fitted to it, so a gate is chosen on all prompts but those that it is judged on. Choosing it on a
fifth of them (the threshold prompts of a hazard model) moved the false gates from 5 to 10% in
`guard_study`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from kvx.config.train import TrainConfig
from kvx.learning.evaluation import Metric
from kvx.learning.fitting import OPERATING_POINTS, threshold_at
from kvx.learning.ranking import Resampler
from kvx.scoring.loops import INSTANT
from kvx.train.crossfit import Mask
from kvx.train.trace_data import Data

GATE = "gate"


def gates(data: Data, among: Mask) -> dict[str, dict[str, float]]:
    """By operating point, the divergence in nats that at most its rate of responses reach.

    The responses are the compressed ones `among` in which compression caused no catastrophe. Empty
    if none has a probe.
    """
    rows = among & data.compressed & ~caused(data) & has_probe(data)
    if not rows.any():
        return {}
    nats = probe_nats(data)[rows]
    return {
        name: {"nats": threshold_at(nats, rate), "false_gate_rate": rate}
        for name, rate in OPERATING_POINTS.items()
    }


def crossfit_gates(
    data: Data, config: TrainConfig, fold: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Each trace's gates [n] in nats, chosen on prompts of the other folds; nan without a probe."""
    found = {name: np.full(len(data), np.nan) for name in OPERATING_POINTS}
    for k in range(config.folds):
        for name, gate in gates(data, fold != k).items():
            found[name][fold == k] = gate["nats"]
    return found


def gate_metrics(
    data: Data, config: TrainConfig, fold: NDArray[np.int64], resampler: Resampler
) -> Iterator[tuple[str, list[Metric]]]:
    """Per operating point, shares of compressed responses that a gate of other prompts stops.

    The shares are of responses without an excess catastrophe (false gates), with one, with an
    excess loop, and with a loop that starts at or before token 4.
    """
    nats, lost = probe_nats(data), caused(data)
    loops = data.frame["excess"].to_numpy(bool)
    instant = loops & (data.frame["onset"].to_numpy(float) <= INSTANT)
    groups = {
        "false_gate_rate": ~lost,
        "recall": lost,
        "recall_of_loops": loops,
        "recall_of_instant": instant,
    }
    for name, limit in crossfit_gates(data, config, fold).items():
        judged = data.compressed & has_probe(data) & ~np.isnan(limit)
        stopped = nats >= limit
        metrics = []
        for metric, group in groups.items():
            rows = judged & group
            share = resampler.share(stopped[rows].astype(float), data.clusters[rows])
            n_stopped = int(stopped[rows].sum())
            metrics.append(Metric(metric, share, int(rows.sum()), n_stopped, "traces"))
        yield name, metrics


def caused(data: Data) -> Mask:
    """Responses [n] with a catastrophe that the full cache does not share, placed or not."""
    return np.asarray(data.frame["excess"].to_numpy(bool) | data.frame["unplaced"].to_numpy(bool))


def probe_nats(data: Data) -> NDArray[np.float32]:
    """The divergence [n] where the first token is chosen; nan where there was no probe."""
    return np.asarray(data.traces.prefill["probe_kl_nats"][:, -1], np.float32)


def has_probe(data: Data) -> Mask:
    return ~np.isnan(probe_nats(data))
