"""The proof of each budget, in words for the report's first page."""

from collections.abc import Iterable

import pandas as pd

from kvx.analyze.facts import keeps_another_number
from kvx.engines.base import BudgetProof

# weakest first
PROVED = {
    BudgetProof.BY_METHOD: "measured in the cache of every response",
    BudgetProof.MEASURED: "measured in the cache of every response",
    BudgetProof.SERVER: "told by the server in every response",
}
# most serious first
NOT_PROVED = {
    BudgetProof.PROBE_SAME: (
        "**The server ignores the budget** of {points}: at the highest and the lowest it gave the "
        "same tokens and log-probs. These points differ by their label only."
    ),
    BudgetProof.NOT_SENT: (
        "**The budget was never sent** for {points}: no endpoint and no field of the requests told "
        "it to the server. These points differ by their label only."
    ),
    BudgetProof.PROBE_UNCLEAR: (
        "**Not known** for {points}: the server gives no accounting, and what it answered at "
        "different budgets (if there were several) settles nothing."
    ),
    BudgetProof.PROBE_DIFFERS: (
        "**Some effect, not known how much**, for {points}: the server gives no accounting, but "
        "its answers at the highest and the lowest budget differ."
    ),
    BudgetProof.NONE: (
        "**No evidence** for {points}: these requests failed, or nothing was measured or probed."
    ),
}
# share of the KV bytes from which a budget is told without the layers that are left alone
NEARLY_ALL = 0.9
SHORT = {
    BudgetProof.MEASURED: "in the cache", BudgetProof.SERVER: "by the server",
    BudgetProof.PROBE_DIFFERS: "no: some effect", BudgetProof.PROBE_SAME: "no: ignored",
    BudgetProof.PROBE_UNCLEAR: "no: unclear", BudgetProof.NOT_SENT: "no: not sent",
    BudgetProof.NONE: "no", BudgetProof.BY_METHOD: "keeps by its method",
}  # fmt: skip


def proofs(requests: pd.DataFrame) -> dict[str, list[BudgetProof]]:
    """The kinds of proof that each point's requests have."""
    known = requests["budget_verified"].map({True: BudgetProof.MEASURED, False: BudgetProof.NONE})
    kinds = requests["budget_proof"].fillna(known)  # rows of earlier versions do not say
    other = requests["budget_verified"].astype(bool) & keeps_another_number(requests)
    kinds = kinds.mask(other, BudgetProof.BY_METHOD)  # nor do they of a method's own number
    found = kinds.groupby(requests["point_id"]).unique()
    return {str(point): sorted(map(BudgetProof, values)) for point, values in found.items()}


def sentences(found: dict[str, list[BudgetProof]]) -> list[str]:
    """One sentence per kind of missing proof, or a single one that all is proved."""
    kinds = {kind for several in found.values() for kind in several}
    by_method = [p for p, several in found.items() if BudgetProof.BY_METHOD in several]
    told = (
        f"**By their method** {', '.join(by_method)} keep another number of entries than was asked "
        "for; they stand here at the budget that was measured."
    )
    if kinds <= set(PROVED):
        ways = dict.fromkeys(text for kind, text in PROVED.items() if kind in kinds)
        how = " or ".join(ways)
        whole = f"Every budget of the {len(found)} points in this report was {how}"
        if by_method:
            return [f"{whole}.", told]
        return [f"{whole}, and none contradicts what was asked."]
    lines = ["**Not every budget is proved.**"]
    for kind, text in NOT_PROVED.items():
        points = [point for point, several in found.items() if kind in several]
        if points:
            lines.append(text.format(points=", ".join(points)))
    return [*lines, told] if by_method else lines


def uncompressed(overall: pd.DataFrame) -> list[str]:
    """A sentence for each model whose compressed layers hold less than 90% of the KV bytes."""
    shares = overall.dropna(subset="kv_compressed_share").groupby("model", sort=True)
    return [
        f"**Compressed layers hold {share:.0%} of the KV bytes** of {model} (full cache, mean over "
        "all requests): a budget is the share of their entries that is kept, and the other layers "
        "keep their windows or states whole."
        for model, share in shares["kv_compressed_share"].mean().items()
        if share < NEARLY_ALL
    ]


def short(kinds: Iterable[BudgetProof]) -> str:
    """For a table: the weakest kind decides."""
    order = [*NOT_PROVED, *PROVED]
    return SHORT[min(kinds, key=order.index)]
