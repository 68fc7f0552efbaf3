"""What the planned number of prompts can find, in three lines for each manifest."""

from collections import Counter
from collections.abc import Iterator, Sequence

from kvx.config.numbers import plural
from kvx.config.schema import BudgetConfig
from kvx.data.manifest import Manifest
from kvx.plan.certificates import certificate_line
from kvx.points import Point
from kvx.stats.power import (
    design_effect,
    detectable_difference,
    margin_within_reach,
    pairs_for_margin,
)

DIFFER, ALIKE = 0.2, 0.1  # shares of answers that differ: where something is lost, where nothing is
CORRELATION = 0.5  # of two questions on one text, where nothing is known yet


def reach(points: Sequence[Point]) -> list[str]:
    """Three lines per manifest: the difference that is found, the margin that can be shown, and
    what a certificate takes.

    None where nothing is compressed, because then nothing is compared.
    """
    compared = [p for p in points if p.wants_answers and p.config.budget.key != BudgetConfig().key]
    manifests = {point.manifest.sha256: point for point in compared}
    lines = (
        line
        for point in manifests.values()
        for line in (
            *_lines(point.manifest, point.config.analyze.confidence, point.config.analyze.margin),
            certificate_line(point.manifest, point.config.certify),
        )
    )
    return list(dict.fromkeys(lines))  # two models may share prompts


def _found(n: float, confidence: float) -> str:
    """The difference that `n` independent prompts find, and how many answers would differ.

    A difference cannot be larger than the share of answers that differ; where it would have to be,
    all that differ are taken to be lost.
    """
    differ = DIFFER
    if (found := detectable_difference(n, differ, confidence)) > differ:
        found = differ = found**2 / differ
    if found >= 1:
        return "none"
    return f"a difference of {100 * found:.0f} points if {100 * differ:.0f}% of answers differ"


def _lines(manifest: Manifest, confidence: float, margin: float) -> Iterator[str]:
    entries = manifest.entries
    sizes = list(Counter(entry.cluster for entry in entries).values())
    effect = design_effect(sizes, CORRELATION)
    n, bins = len(entries), Counter(entry.bin for entry in entries)
    smallest = min(bins.values())
    found, in_bin = (_found(count / effect, confidence) for count in (n, smallest))
    worth = ""
    if effect > 1:
        worth = (
            f", worth {n / effect:.0f} because {plural(len(sizes), 'cluster')} share them "
            f"(correlation {CORRELATION:g} assumed)"
        )
    yield (
        f"power on {manifest.dataset_id}: {plural(n, 'prompt')}{worth}; {found} is found in 80% "
        f"of runs, in a bin of {smallest} {in_bin}"
    )
    needed = pairs_for_margin(margin, ALIKE, confidence) * effect
    shown = 100 * margin_within_reach(n / effect, ALIKE, confidence)
    yield (
        f'"loses at most {100 * margin:g} points" (analyze.margin) needs {needed:,.0f} prompts if '
        f"{100 * ALIKE:.0f}% of answers differ and nothing is lost; these reach {shown:.1f} points"
    )
