"""The engine protocol: bundles of requests in, responses out. Knows no torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from kvx.config.press_choices import Keeps
from kvx.config.schema import Config, PressConfig
from kvx.data.example import Example
from kvx.guard.events import Guarded
from kvx.identity.hashing import digest
from kvx.points import Point, Request


@dataclass(frozen=True)
class PointWork:
    """The work left for one point: its missing requests with their examples."""

    point: Point
    requests: tuple[tuple[Request, Example], ...]


@dataclass(frozen=True)
class Timing:
    """Seconds, wall clock, of one request.

    `ttft_s` counts from the start of the prefill (of a server: from sending) to the first token;
    `tpot_s` is (latency - TTFT) / (output tokens - 1), None for a single token. A server's prefill
    and decoding cannot be told apart from outside: None.
    """

    ttft_s: float | None
    latency_s: float
    prefill_s: float | None
    decode_s: float | None
    tpot_s: float | None


@dataclass(frozen=True)
class KVUse:
    """KV cache of the compressed prompt part. Entries are means over layers and KV heads.

    `nominal` is what the budget asks for, `effective` what attention can still see, `physical` what
    is in memory. `peak` bytes include the question and the generated tokens; `full` is the
    uncompressed part.
    """

    entries_nominal: float
    entries_effective: float
    entries_physical: float
    bytes_nominal: int
    bytes_effective: int
    bytes_physical: int
    bytes_full: int
    bytes_peak: int
    compressed_share: float | None = None


@dataclass(frozen=True)
class Probe:
    """How far compression moved the next-token distributions before anything was generated.

    At the last tokens of the prompt, forced on both caches; the last item is where the first token
    is chosen. `kl_nats` is KL(full cache || compressed), `same_top1` whether both find the same
    token likeliest. Whoever reads may not assume how many items there are.
    """

    kl_nats: list[float]
    same_top1: list[bool]


@dataclass(frozen=True)
class Trace:
    """Per-token signals of one response; all lists have one item per output token.

    `signals` holds the columns of `store.schemas.SIGNALS` by name, `probe` and
    `score_evicted` (share of the press's score mass that was dropped, mean over layers and heads)
    what was seen at the prefill: None if not recorded or not to be had. `kept_percent` [compressed
    tokens] likewise: in how many percent of the layers and KV heads that a press compresses it kept
    each position of the prompt; None also without a press. `context_chars` [compressed tokens] are
    the characters of the context that these stand for (`PromptBuilder.context_chars`).

    `source` is "full" where the whole distribution was seen, "top20" where only the 20 likeliest
    were (`top_logprobs`, highest first): then the entropy takes the rest as one outcome, a lower
    bound. `arrival_s` is when the token came, counted from sending the request.
    """

    token_ids: list[int] | None
    logprob: list[float]
    entropy_nats: list[float]
    source: str = "full"
    top_logprobs: list[list[float]] | None = None
    arrival_s: list[float] | None = None
    signals: dict[str, list[Any]] | None = None
    probe: Probe | None = None
    score_evicted: float | None = None
    kept_percent: list[int] | None = None
    context_chars: list[int] | None = None


class BudgetProof(StrEnum):
    """How the budget of a response is proved, if it is.

    Only the first three count as proof: what a probe finds says that a budget has some effect, not
    how much was kept.
    """

    MEASURED = "measured"  # in the cache, in this process
    BY_METHOD = "by_method"  # measured, or reported by the server; the press keeps another number
    SERVER = "server"  # the server's own accounting, in the response
    PROBE_DIFFERS = "probe_differs"  # other tokens or log-probs at the lowest budget
    PROBE_SAME = "probe_same"  # the same tokens and log-probs: the budget is ignored
    PROBE_UNCLEAR = "probe_unclear"  # no log-probs, or they vary by themselves
    NOT_SENT = "not_sent"  # nothing in the requests distinguishes budgets
    NONE = "none"  # the request failed, or the budget was not probed


# entries by which rounding may part what is kept from what was asked
ROUNDING = 1


def kept_as_asked(press: PressConfig, asked: float, kept: float) -> BudgetProof | None:
    """Whether entries `kept` are those that were `asked`; None if they contradict them.

    Where they are not, but the press may keep another number, it is `BY_METHOD`.
    """
    off = abs(kept - asked)
    if off <= min(ROUNDING, press.tolerance_tokens):
        return BudgetProof.MEASURED
    if press.keeps is Keeps.by_method or off <= press.tolerance_tokens:
        return BudgetProof.BY_METHOD
    return None


@dataclass(frozen=True)
class Ranked:
    """That kvpress's code for a press would not rank by this model's attention, and why.

    `adapted`: the model's own queries were used instead. If not, the press is not its method.
    """

    reason: str
    adapted: bool


@dataclass(frozen=True)
class Response:
    """The response to one request, with its measurements; None where not measured.

    `output_tokens` is the server's count, where it gives no `token_ids`; `machine` its address,
    None for what this process generated. `reasoning` is what a server sent beside the text,
    `reasoning_tokens` how many of the tokens were reasoning, in the text or beside it, and
    `opens_reasoning` whether the prompt ended with an open tag; None where that is not known.
    """

    request: Request
    text: str | None
    token_ids: list[int] | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None  # stop | length | content_filter | repetition | tool_calls
    reasoning: str | None = None
    reasoning_tokens: int | None = None
    opens_reasoning: bool | None = None
    error_type: str | None = None
    error_message: str | None = None
    timing: Timing | None = None
    kv: KVUse | None = None
    budget_verified: bool = False
    budget_proof: BudgetProof | None = None  # None: measured if verified
    peak_memory_bytes: int | None = None
    trace: Trace | None = None
    guard: Guarded | None = None
    machine: str | None = None
    ranked: Ranked | None = None  # None: as kvpress's code ranks, or not at all

    @property
    def has_response(self) -> bool:
        return self.error_type is None


@dataclass(frozen=True)
class PointFailed:
    """A point that cannot go on: its measured budget contradicts the asked one."""

    point: Point
    message: str


@dataclass(frozen=True)
class Measurement:
    """One request that ran alone at batch 1, for its times and memory; its answer is not kept.

    `peak_memory_bytes` is the device's (CUDA) or the process's (CPU), weights included. `machine`
    is what the times depend on; None: this one. `others_cpu_share` is the share of the cores this
    process may use that others took meanwhile, `gpu_others` how many others use its GPU.
    """

    request: Request
    repeat: int
    timing: Timing | None = None
    output_tokens: int | None = None
    kv_bytes_peak: int | None = None
    peak_memory_bytes: int | None = None
    machine: str | None = None
    others_cpu_share: float | None = None
    gpu_others: int | None = None
    error_type: str | None = None
    error_message: str | None = None


@dataclass(frozen=True)
class Fidelity:
    """A request's next-token distributions along the full cache's own greedy answer, `token_ids`.

    The lists have one item per token of that answer, its end token included: KL(full cache ||
    this cache) in nats, whether both find the same token likeliest, and the answer's log-prob under
    this cache and under the full one.
    """

    request: Request
    token_ids: list[int] | None = None
    kl_nats: list[float] | None = None
    same_top1: list[bool] | None = None
    logprob: list[float] | None = None
    full_logprob: list[float] | None = None
    kv: KVUse | None = None
    budget_proof: BudgetProof | None = None
    ranked: Ranked | None = None
    error_type: str | None = None
    error_message: str | None = None


@dataclass(frozen=True)
class LatencyWork:
    """The measurements left for one point: (request, example, repeat)."""

    point: Point
    requests: tuple[tuple[Request, Example, int], ...]


class Engine(Protocol):
    """Generates answers. Constructed with the configuration of any of its points."""

    def __init__(self, config: Config) -> None: ...

    def check(self, points: Sequence[Point]) -> None:
        """Raises `UserError` for a point this engine cannot run, before anything is started."""
        ...

    def generate(self, work: Sequence[PointWork]) -> Iterator[Response | PointFailed]:
        """Exactly one `Response` per request of a point, unless a `PointFailed` ends that point.

        Answers only: how fast they come says nothing about latency.
        """
        ...

    def measure(self, work: Sequence[LatencyWork]) -> Iterator[Measurement | PointFailed]:
        """One `Measurement` per item; each request runs alone, after its point's warm-up.

        Points take turns (`interleaved`): what drifts meanwhile is in all of them alike.
        """
        ...

    def fidelity(self, work: Sequence[PointWork]) -> Iterator[Fidelity | PointFailed]:
        """Exactly one `Fidelity` per request of a point, unless a `PointFailed` ends that point.

        Asked only of an engine that has this method; others see no logits of a forced answer.
        """
        ...


def interleaved(
    work: Sequence[LatencyWork],
) -> Iterator[tuple[LatencyWork, tuple[Request, Example, int]]]:
    """Every item of `work`: repeat by repeat, example by example, and all points in between.

    Which point comes first rotates from example to example and from repeat to repeat.
    """
    order: dict[str, int] = {}
    turns: dict[tuple[int, int], list[tuple[int, tuple[Request, Example, int]]]] = {}
    for number, item in enumerate(work):
        for asked in item.requests:
            _, example, repeat = asked
            place = order.setdefault(example.example_id, len(order))
            turns.setdefault((repeat, place), []).append((number, asked))
    for repeat, place in sorted(turns):
        turn = turns[repeat, place]
        first = (repeat + place) % len(turn)
        for number, asked in turn[first:] + turn[:first]:
            yield work[number], asked


def seed_of(request: Request) -> int:
    """By seed and example, so that a resumed run draws what an undisturbed one would."""
    return int(digest([request.point.config.seed, request.entry.example_id], 12), 16)
