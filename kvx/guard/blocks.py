"""The parts of `features.FeatureState`: each turns one step's signals into a few columns.

Every part works row by row. Its result for a row must not depend on the rows beside it, to the
last bit, so nothing is summed in floating point along an axis whose order numpy may choose: sums
over windows and over log-probs are taken over integers, which also keeps running sums exact.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvx.guard.trace_arrays import PROBE_TOKENS, TOP, Signals

Floats = NDArray[np.float32]
SCALE = 2.0**16  # steps per unit in windows: 64 squares of values up to 256 fit 64 bits
LARGEST = 255.0
LONGEST = 64  # tokens: the longest window
TOP_SCALE = 2.0**10
PAST = 32  # tokens that log-probs are compared with
NO_PAST = 2**26
FIRST = 8
SLACK_NATS = 0.25  # a cumulative sum grows by what exceeds the mean so far by more than this
CONFIDENT = -0.1  # nats: the likeliest token has about 90%
PROBE_BACK = (0, 1, 2, 4, 7)  # positions before the one where the first token is chosen


class Block:
    """State of any number of rows: `cells` are [rows, ...], `rings` [slots, rows, ...].

    The rings of a block have one write position for all rows; what a row has not seen yet is the
    value that its ring was `EMPTY` with.
    """

    names: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.cells: dict[str, NDArray[Any]] = {}
        self.rings: dict[str, NDArray[Any]] = {}
        self.clock = 0

    def start(self, prefill: Signals, rows: int) -> None:
        """Make the state of `rows` rows that have no token yet."""

    def keep(self, rows: NDArray[Any]) -> None:
        self.cells = {name: cell[rows] for name, cell in self.cells.items()}
        self.rings = {name: ring[:, rows] for name, ring in self.rings.items()}

    def join(self, other: "Block") -> None:
        for name, cell in other.cells.items():
            self.cells[name] = np.concatenate([self.cells[name], cell])
        for name, ring in other.rings.items():
            turned = np.roll(ring, self.clock - other.clock, axis=0)
            self.rings[name] = np.concatenate([self.rings[name], turned], axis=1)

    def step(self, signals: Signals, t: NDArray[np.int64], out: Floats) -> None:
        """Write the columns of this token, number `t` [rows], into `out` [rows, names]."""
        raise NotImplementedError


class Direct(Block):
    """Signals as they are."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = self.needs = tuple(names)

    def step(self, signals: Signals, t: NDArray[np.int64], out: Floats) -> None:
        for column, name in enumerate(self.names):
            out[:, column] = signals[name]


class TopLogprobs(Block):
    """The likeliest tokens' log-probs and the margin between the first two."""

    names = (*(f"top_logprob_{i:02d}" for i in range(TOP)), "margin")
    needs = ("top_logprobs",)

    def step(self, signals: Signals, t: NDArray[np.int64], out: Floats) -> None:
        top = signals["top_logprobs"]
        out[:, :TOP] = top
        out[:, TOP] = top[:, 0] - top[:, 1]


class Position(Block):
    """The token's position: its number, its share of the cap, and whether one came before."""

    names = ("token", "token_share", "has_previous")

    def start(self, prefill: Signals, rows: int) -> None:
        self.cells = {"cap": np.asarray(prefill["max_new_tokens"], np.float32)}

    def step(self, signals: Signals, t: NDArray[np.int64], out: Floats) -> None:
        out[:, 0] = t
        out[:, 1] = t / self.cells["cap"]
        out[:, 2] = t > 0


class Windows(Block):
    """Mean and standard deviation of signals over the last `sizes` tokens (fewer at the start)."""

    def __init__(self, signals: Sequence[str], sizes: Sequence[int]) -> None:
        super().__init__()
        self.needs, self.sizes = tuple(signals), tuple(sizes)
        self._sizes = np.array(sizes)
        self.names = tuple(
            f"{kind}_{size}_{name}"
            for size in sizes
            for kind in ("mean", "std")
            for name in signals
        )

    def start(self, prefill: Signals, rows: int) -> None:
        shape = (rows, len(self.needs))
        self.rings = {"values": np.zeros((LONGEST, *shape), np.int64)}
        self.cells = {  # the running sums of each window
            name: np.zeros((rows, len(self.sizes), len(self.needs)), np.int64)
            for name in ("sum", "squares")
        }

    def step(self, signals: Signals, t: NDArray[np.int64], out: Floats) -> None:
        ring, total, squares = self.rings["values"], self.cells["sum"], self.cells["squares"]
        sizes = self._sizes
        new = fixed(np.stack([signals[name] for name in self.needs], axis=1), SCALE, LARGEST)
        old = ring[(self.clock - sizes) % LONGEST].swapaxes(0, 1)
        total += new[:, None] - old
        squares += (new * new)[:, None] - old * old
        n = np.minimum(t[:, None] + 1, sizes)[:, :, None]
        units = n * SCALE
        columns = out.reshape(len(t), len(sizes), 2, len(self.needs), copy=False)
        np.divide(total, units, out=columns[:, :, 0], casting="same_kind")
        np.divide(
            np.sqrt(n * squares - total * total), units, out=columns[:, :, 1], casting="same_kind"
        )
        ring[self.clock % LONGEST] = new
        self.clock += 1


class RecentRepetition(Block):
    """The repetition counts of the last 8 tokens, added up."""

    names = ("sum_8_repetition_count",)
    needs = ("repetition_count",)

    def start(self, prefill: Signals, rows: int) -> None:
        self.rings = {"counts": np.zeros((FIRST, rows), np.int64)}
        self.cells = {"sum": np.zeros(rows, np.int64)}

    def step(self, signals: Signals, t: NDArray[np.int64], out: Floats) -> None:
        ring, slot = self.rings["counts"], self.clock % FIRST
        new = fixed(signals["repetition_count"], 1.0, 2.0**31)
        self.cells["sum"] += new - ring[slot]
        ring[slot] = new
        self.clock += 1
        out[:, 0] = self.cells["sum"]


class Accumulated(Block):
    """Signals since the first token: mean so far, mean of the first 8 tokens, and two CUSUMs.

    Each sum grows by how far its signal is above (below) its mean before this token, less a slack,
    and never falls below 0: it stays small while the signal only fluctuates.

    Source: Page (1954), Biometrika 41, 100-115; the mean is the row's own instead of a known one.
    """

    KINDS = ("so_far", "first_8", "cusum_up", "cusum_down")

    def __init__(self, signals: Sequence[str]) -> None:
        super().__init__()
        self.needs = tuple(signals)
        self.names = tuple(f"{kind}_{signal}" for kind in self.KINDS for signal in signals)

    def start(self, prefill: Signals, rows: int) -> None:
        shape = (rows, len(self.needs))
        self.cells = {name: np.zeros(shape) for name in ("total", "first", "up", "down")}

    def step(self, signals: Signals, t: NDArray[np.int64], out: Floats) -> None:
        cells, t = self.cells, t[:, None]
        new = np.stack([signals[name] for name in self.needs], axis=1).astype(np.float64)
        np.nan_to_num(new, copy=False)
        away = np.where(t > 0, new - cells["total"] / np.maximum(t, 1), 0.0)
        cells["up"] = np.maximum(cells["up"] + away - SLACK_NATS, 0.0)
        cells["down"] = np.maximum(cells["down"] - away - SLACK_NATS, 0.0)
        cells["total"] = cells["total"] + new
        cells["first"] = np.where(t < FIRST, cells["total"], cells["first"])
        columns = out.reshape(len(t), len(self.KINDS), len(self.needs), copy=False)
        columns[:, 0] = cells["total"] / (t + 1)
        columns[:, 1] = cells["first"] / np.minimum(t + 1, FIRST)
        columns[:, 2] = cells["up"]
        columns[:, 3] = cells["down"]


class Likeness(Block):
    """How like an earlier step this one is: the sum of absolute differences of the likeliest
    tokens' log-probs to the nearest of the last 32 steps (nan at the first); and for how many
    tokens in a row the model has been sure.

    Needs no token ids: a loop's steps have the distributions of the loop before.
    """

    names = ("nearest_past_step", "mean_8_nearest_past_step", "confident_run")
    needs = ("top_logprobs",)

    def start(self, prefill: Signals, rows: int) -> None:
        self.rings = {
            "steps": np.full((PAST, rows, TOP), NO_PAST, np.int32),
            "nearest": np.zeros((PAST, rows), np.int64),
        }
        self.cells = {"sum": np.zeros(rows, np.int64), "run": np.zeros(rows, np.int64)}

    def step(self, signals: Signals, t: NDArray[np.int64], out: Floats) -> None:
        steps, cells = self.rings["steps"], self.cells
        top = signals["top_logprobs"]
        new = fixed(top, TOP_SCALE, LARGEST, missing=-200.0).astype(np.int32)
        apart = np.abs(steps - new).sum(axis=2, dtype=np.int32).min(axis=0)
        nearest = np.where(t > 0, apart, 0).astype(np.int64)
        slot = self.clock % PAST
        old = self.rings["nearest"][(self.clock - FIRST) % PAST]
        cells["sum"] += nearest - old
        steps[slot], self.rings["nearest"][slot] = new, nearest
        self.clock += 1
        cells["run"] = np.where(top[:, 0] > CONFIDENT, np.minimum(cells["run"] + 1, LONGEST), 0)
        out[:, 0] = np.where(t > 0, nearest / TOP_SCALE, np.nan)
        out[:, 1] = cells["sum"] / (np.clip(t, 1, FIRST) * TOP_SCALE)
        out[:, 2] = cells["run"]


class Prefill(Block):
    """Features known before the first token; constant within a row."""

    NAMES = (
        *(f"probe_kl_{back}" for back in PROBE_BACK), "probe_kl_mean", "probe_kl_max",
        "probe_same_0", "probe_same_share", "score_evicted", "budget", "log_prompt_tokens",
        "log_kept_tokens",
    )  # fmt: skip

    def __init__(self, presses: Sequence[str] = ()) -> None:
        super().__init__()
        self.presses = tuple(presses)
        self.names = (*self.NAMES, *(f"press={name}" for name in presses))

    def start(self, prefill: Signals, rows: int) -> None:
        self.cells = {"table": prefill_features(prefill, self.presses)}

    def step(self, signals: Signals, t: NDArray[np.int64], out: Floats) -> None:
        out[:] = self.cells["table"]


def prefill_features(prefill: Signals, presses: Sequence[str] = ()) -> Floats:
    """The columns `Prefill(presses).names` of `prefill` (see `traces.PREFILL`): [rows, names]."""
    kl = np.asarray(prefill["probe_kl_nats"], np.float32).reshape(-1, PROBE_TOKENS)
    same = np.asarray(prefill["probe_same_top1"], np.float32).reshape(-1, PROBE_TOKENS)
    columns = [kl[:, PROBE_TOKENS - 1 - back] for back in PROBE_BACK]
    columns += [_mean(kl), np.fmax.reduce(kl, axis=1), same[:, -1], _mean(same)]
    columns += [np.asarray(prefill[name], np.float32) for name in ("score_evicted", "budget")]
    for name in ("prompt_tokens", "kept_tokens"):
        columns.append(np.array([np.log(max(n, 1.0)) for n in prefill[name]], np.float32))
    names = np.asarray(prefill["press"], dtype=object)
    columns += [(names == press).astype(np.float32) for press in presses]
    return np.stack(columns, axis=1).astype(np.float32)


def top20_entropy(top_logprobs: Floats, logprob: Floats) -> Floats:
    """Entropy [rows] of the likeliest tokens [rows, 20], of the chosen one where it is none of
    them, and of all others taken as one: a lower bound. nan log-probs are of no token.
    """
    top = np.ascontiguousarray(top_logprobs.T, np.float64)  # alike in memory for any row count
    lowest = np.fmin.reduce(top, axis=0)
    chosen = np.where(logprob < lowest, logprob.astype(np.float64), -np.inf)
    known, total = np.zeros(len(chosen)), np.zeros(len(chosen))
    for column in (*top, chosen):
        p = np.nan_to_num(np.exp(column))
        known, total = known + p, total - p * np.where(p > 0, column, 0.0)
    rest = np.maximum(1 - known, 0.0)
    found: Floats = (total - rest * np.log(np.where(rest > 0, rest, 1.0))).astype(np.float32)
    return found


def fixed(
    values: NDArray[Any], scale: float, largest: float, missing: float = 0.0
) -> NDArray[np.int64]:
    """`values` in steps of 1 / `scale`, cut at ± `largest`; nan is `missing`."""
    known = np.where(np.isnan(values), missing, values).astype(np.float64)
    return np.rint(np.clip(known, -largest, largest) * scale).astype(np.int64)


def _mean(table: Floats) -> Floats:
    """Mean of each row [rows, columns] without its nan, added up column by column."""
    known = ~np.isnan(table)
    total = np.zeros(len(table))
    for column in np.where(known, table, 0.0).astype(np.float64).T:
        total = total + column
    n = known.sum(axis=1)
    mean: Floats = np.where(n > 0, total / np.maximum(n, 1), np.nan).astype(np.float32)
    return mean
