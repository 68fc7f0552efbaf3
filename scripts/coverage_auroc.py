"""A part of scripts/coverage_study.py: intervals of the AUROC of a forecast."""

import math

import numpy as np
from scipy.special import ndtri

from kvx.stats.auroc import clustered_auroc
from scripts.coverage_base import CONFIDENCE, Ask, Part, Result, Setting
from scripts.coverage_worlds import settings_of

POSITIVE = 0.3  # of the prompts


def forecasts(setting: Setting, repeats: int, rng: np.random.Generator) -> Result:
    """Normal scores whose means are as far apart as the true AUROC asks; a prompt has one label."""
    prompts, tokens, icc = setting["n"], setting["tokens"], setting["icc"]
    apart = math.sqrt(2) * float(ndtri(setting["auroc"]))
    clusters = np.repeat(np.arange(prompts), tokens)
    known = covered = 0
    for _ in range(repeats):
        positive = rng.random(prompts) < POSITIVE
        shared = math.sqrt(icc) * rng.standard_normal(prompts) + apart * positive
        own = math.sqrt(1 - icc) * rng.standard_normal(prompts * tokens)
        score, label = shared[clusters] + own, positive[clusters]
        _, (low, high) = clustered_auroc(score, label, clusters.tolist(), CONFIDENCE)
        if not math.isnan(low):
            known += 1
            covered += low <= setting["auroc"] <= high
    return {"repeats": repeats, "known": known, "covered": covered}


PARTS = [
    Part(
        "auroc",
        "AUROC",
        "`kvx.stats.auroc.clustered_auroc`, which judges forecasts. 30% of the n prompts are "
        "positive; with several tokens each, these have an ICC of 0.5.",
        settings_of(tokens=[1], icc=[0.0], n=[30, 100, 300], auroc=[0.5, 0.7, 0.9, 0.99])
        + settings_of(tokens=[20], icc=[0.5], n=[30, 100, 300], auroc=[0.5, 0.7, 0.9, 0.99]),
        forecasts,
        (Ask("95% intervals cover", "covered", "known", 0.93, 0.975, strict=False),),
        ("tokens", "n"),
    ),
]
