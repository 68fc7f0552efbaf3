"""Forecasts at the first token: the probe, and what the first 8 tokens add to it."""

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

from kvx.guard.blocks import PROBE_BACK, Floats
from kvx.guard.features import LOGIT_ONLY
from kvx.learning.evaluation import Metric, group_auroc
from kvx.learning.ranking import Resampler
from kvx.train.crossfit import Table

FIRST = 8
PROBE = "probe_kl_0"
PREFILL_FEATURES = (
    *(f"probe_kl_{back}" for back in PROBE_BACK), "probe_kl_mean", "probe_kl_max", "probe_same_0",
    "probe_same_share", "score_evicted", "log_prompt_tokens",
)  # fmt: skip


def early_metrics(
    table: Table, fold: NDArray[np.int64], resampler: Resampler, seed: int
) -> list[tuple[str, Metric]]:
    """(name, AUROC) of scores of compressed traces, one score per trace.

    Instant catastrophes are told from all other traces; catastrophes of any onset, and those that
    start after the first 8 tokens, from sound traces. Only for the last are the first 8 tokens
    before every onset. Models are fitted on the other prompts.
    """
    data = table.data
    kept, events = data.judged, data.about.events
    later = events & (data.about.onset >= FIRST)
    first = data.traces.starts[:-1]
    eighth = first + np.minimum(data.traces.lengths, FIRST) - 1
    columns = {
        name: table.features[:, table.columns([name])[0]]
        for name in (PROBE, "budget", "first_8_entropy_nats")
    }
    found = []
    for what, positive, rows in (
        ("instant", data.about.instant, kept),
        ("any onset", events, kept),
        (f"onset after the first {FIRST} tokens", later, kept & (later | ~events)),
    ):
        if not positive[rows].any():
            continue
        scores = {
            "probe alone": columns[PROBE][first],
            "budget alone": -columns["budget"][first],
            "what is known before the first token": _crossfit(
                table.matrix(first, PREFILL_FEATURES), positive, rows, fold, seed
            ),
            "mean entropy of the first 8 tokens": columns["first_8_entropy_nats"][eighth],
            "probe and first 8 tokens": _crossfit(
                table.matrix(eighth, LOGIT_ONLY), positive, rows, fold, seed
            ),
        }
        of = positive[rows], data.clusters[rows], resampler, "auroc"
        found += [(f"{what}: {name}", group_auroc(s[rows], *of)) for name, s in scores.items()]
    return found


def _crossfit(
    features: Floats,
    positive: NDArray[np.bool_],
    rows: NDArray[np.bool_],
    fold: NDArray[np.int64],
    seed: int,
) -> NDArray[np.float32]:
    """Scores [n] of each fold's traces by a small model of the others; nan without both classes."""
    score = np.full(len(features), np.nan, np.float32)
    for k in np.unique(fold):
        learnt, tested = rows & (fold != k), rows & (fold == k)
        n = int(positive[learnt].sum())
        if not tested.any() or n in (0, int(learnt.sum())):
            continue
        parameters = {
            "objective": "binary:logistic", "max_depth": 3, "eta": 0.05, "subsample": 0.8,
            "colsample_bytree": 0.6, "min_child_weight": 2.0, "tree_method": "hist", "seed": seed,
            "nthread": 1, "scale_pos_weight": (int(learnt.sum()) - n) / n,
        }  # fmt: skip
        matrix = xgb.DMatrix(features[learnt], label=positive[learnt], nthread=1)
        booster = xgb.train(parameters, matrix, 100)
        score[tested] = booster.inplace_predict(features[tested], predict_type="margin")
    return score
