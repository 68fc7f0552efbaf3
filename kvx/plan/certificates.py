"""How many prompts a certificate takes, beside how many are planned."""

from collections import defaultdict

from kvx.config.certify import CertifyConfig
from kvx.config.numbers import plural
from kvx.data.manifest import Manifest
from kvx.stats.risk_control import least_prompts, prompts_for_power

POWER = 0.8


def certificate_line(manifest: Manifest, settings: CertifyConfig) -> str:
    """The least number of texts for a certificate, and those for a chance of 80%, by true losses.

    Counts are of clusters (texts), in the smallest length bin with `certify.per_bin`.
    """
    clusters: dict[int, set[str]] = defaultdict(set)
    for entry in manifest.entries:
        clusters[entry.bin if settings.per_bin else 0].add(entry.cluster)
    alpha, delta = settings.alpha, settings.delta / max(len(clusters), 1)
    least = least_prompts(settings.net, alpha, delta)
    there = plural(min(map(len, clusters.values()), default=0), "text")
    text = (
        f"a certificate (certify.alpha={alpha:g}, certify.delta={settings.delta:g}) on "
        f"{manifest.dataset_id} needs {least:,} texts{' in every bin' if settings.per_bin else ''} "
        f"where none loses anything"
    )
    if not settings.net:
        low, high = (
            f"{prompts_for_power(risk, alpha, delta, POWER):,}" for risk in (alpha / 5, alpha / 2)
        )
        text += (
            f"; to get it in 80% of runs {low} at a true loss of {100 * alpha / 5:g}%, {high} at "
            f"{100 * alpha / 2:g}%"
        )
    return f"{text}; {'the smallest bin' if settings.per_bin else 'it'} has {there}"
