"""Splits by prompt into training and held-out data; no prompt is on both sides.

scikit-learn's GroupKFold would deal the same prompts to other folds, and so change every figure.
"""

from collections.abc import Mapping, Sequence

from kvx.identity.hashing import sha256_text

PARTS = ("train", "validation", "threshold")
GOLDEN = 0.6180339887498949


def folds(strata: Mapping[str, str], n_folds: int, seed: int) -> dict[str, int]:
    """Outer fold of each prompt, 0 .. n_folds - 1.

    `strata` maps prompts to groups (such as datasets) that are dealt out evenly, in the order of
    the hashes of their prompts: the result does not depend on the order of `strata`.
    """
    return {prompt: i % n_folds for i, prompt in enumerate(_dealt(strata, f"fold {seed}"))}


def parts(strata: Mapping[str, str], shares: Sequence[float], seed: int) -> dict[str, str]:
    """Each prompt's part, one of `PARTS` in `shares` that add up to 1, every group evenly."""
    found = {}
    for i, prompt in enumerate(_dealt(strata, f"part {seed}")):
        place = (i + 1) * GOLDEN % 1  # spreads any run of prompts evenly over [0, 1)
        rest = place - shares[0]
        found[prompt] = PARTS[0] if rest < 0 else PARTS[1] if rest < shares[1] else PARTS[2]
    return found


def _dealt(strata: Mapping[str, str], salt: str) -> list[str]:
    """Prompts group by group, in the order of their hashes."""
    return sorted(strata, key=lambda prompt: (strata[prompt], sha256_text(f"{salt} {prompt}")))
