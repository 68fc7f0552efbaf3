"""A live controller's actions on one sequence, as stored and reported. Imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GuardEvent:
    """One decision of a controller that changed its mode or a sequence, and what was done.

    `token` is the index of the last token seen, -1 before the first; `mode` the mode entered.
    `action` is one of `ACTIONS`, `reason` that of a controller's `Decision`, calm or let_go.
    `n_kept` tokens stayed; those of `dropped_ids` were taken back. Budgets are shares of the
    prompt's entries. `milliseconds` is how long the row, and all beside it, waited.
    """

    token: int
    mode: str
    action: str
    reason: str
    hazard: float | None
    probe_nats: float | None
    budget_before: float
    budget_after: float
    n_kept: int
    dropped_ids: list[int]
    milliseconds: float


# watch: to ALERT or back, nothing done; alarm: there was nothing left to do; raise: the gate raised
# the budget; relax: without taking tokens back; roll_back: also took tokens back; restart: all of
# them; recompress: back to the sequence's own budget when calm, to the point's when let go
ACTIONS = ("watch", "alarm", "raise", "relax", "roll_back", "restart", "recompress")
# those that gave a sequence more of its prompt or took tokens back
INTERVENTIONS = ("raise", "relax", "roll_back", "restart")


@dataclass(frozen=True)
class Guarded:
    """What a controller did to one response.

    `mean_budget` is the share of the prompt's entries on the device, mean over all steps that
    decoded a token, also one that was taken back; `decoded_tokens` counts those steps.
    `bytes_host` is what the shadow of the prompt's cache took beside the device.
    """

    events: list[GuardEvent]
    mean_budget: float
    decoded_tokens: int
    recomputed_tokens: int
    bytes_host: int
