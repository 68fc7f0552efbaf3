"""Admission: sequences of one prompt through the model, ready for their first token.

Prefill, question and probe are here for every way in: a run, a server, the guarded library.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kvx.config.schema import DecodingConfig
from kvx.data.prompt import PromptParts
from kvx.engines.kvpress.cache import Bucket
from kvx.engines.kvpress.forward import question
from kvx.engines.kvpress.guarded import shadow_of, source_of
from kvx.engines.kvpress.kept import KeptPositions
from kvx.engines.kvpress.model import LoadedModel
from kvx.engines.kvpress.prefill import prefill
from kvx.engines.kvpress.probe import mean_share, probes, reference_of
from kvx.engines.kvpress.prompt_row import PromptRow, RowPress, kv_use
from kvx.engines.kvpress.proof import prove_budget
from kvx.engines.kvpress.sequence import Origin, Prefill, Row, drop, without
from kvx.engines.kvpress.shadow import PromptShadow
from kvx.engines.kvpress.streams import RandomStream
from kvx.guard.live import SequenceGuard
from kvx.guard.trace_arrays import PROBE_TOKENS
from kvx.points import Request
from kvx.text.incremental import StopWatch


@dataclass(frozen=True)
class Submission:
    """A sequence to generate: a press at a budget over a prompt, and how it is decoded.

    A `watched` sequence records the score mass that its press drops, one with `positions` which
    of them it keeps; a `probed` one is compared
    with the full cache before its first token. `guard` and `until` make a new object for every
    attempt. `row` is a running sequence to go on with: its tokens are part of the prompt's rest.
    A press that works `everywhere` compresses layers with a window too. A sequence that is `alone`
    runs inside its press's own context, for presses that change the forward pass; one
    `in_transformers` is decoded by transformers, with its cache. `attention` is the implementation
    that the prefill needs, where it matters. The row's `owner` is who wants it.
    """

    parts: PromptParts
    press: RowPress | None
    press_name: str
    kept_tokens: int
    max_new_tokens: int
    seed: int
    request: Request | None = None
    decoding: DecodingConfig | None = None
    ignore_stop: bool = False
    watched: bool = False
    positions: bool = False
    probed: bool = False
    guard: Callable[[], SequenceGuard] | None = None
    until: Callable[[], StopWatch] | None = None
    row: Row | None = None
    everywhere: bool = False
    alone: bool = False
    in_transformers: bool = False
    attention: str | None = None
    owner: Any = None

    def kept(self) -> KeptPositions | None:
        """A new record of the positions that its press keeps; None if it is not wanted."""
        return KeptPositions() if self.positions and self.press is not None else None

    def begin(self) -> Row:
        """The row with the compressed part of its prompt in the cache and nothing else."""
        n = len(self.parts.compressed_ids)
        if self.row is not None:
            self.row.position, self.row.packed, self.row.owner = n, 0, self.owner
            return self.row
        return Row(
            self.request,
            n,
            generator=torch.Generator().manual_seed(self.seed),
            decoding=self.decoding,
            ignore_stop=self.ignore_stop,
            until=None if self.until is None else self.until(),
            opens_reasoning=self.parts.opens_reasoning,
            guard=None if self.guard is None else self.guard(),
            owner=self.owner,
        )


@dataclass(frozen=True)
class Admission:
    """Rows in their buckets with first-token logits [rows, vocab], in the order of the buckets.

    `refused` holds the indices of the sequences that cannot be generated, each with the reason.
    """

    buckets: list[tuple[Bucket, list[Row]]]
    prefills: list[Prefill]
    logits: torch.Tensor
    refused: list[tuple[int, Exception]]

    @property
    def rows(self) -> list[Row]:
        return [row for _, members in self.buckets for row in members]


@torch.inference_mode()
def admit(loaded: LoadedModel, group: Sequence[Submission]) -> Admission:
    """Prefill a `group` of sequences with the same prompt in one forward pass.

    A press that fails, or a cache that contradicts its budget, refuses its own sequence; other
    exceptions are the group's.
    """
    parts, max_new_tokens, alone = group[0].parts, group[0].max_new_tokens, group[0].alone
    if group[0].attention is not None:
        loaded.set_attention(group[0].attention)
    ids, rest, n = parts.compressed_ids, parts.rest_ids, len(parts.compressed_ids)
    rows = [asked.begin() for asked in group]
    shadow = PromptShadow(loaded.device)
    prompts = [
        PromptRow(
            asked.press,
            asked.kept_tokens,
            RandomStream(asked.seed, loaded.devices),
            watched=asked.watched,
            kept=asked.kept(),
            everywhere=asked.everywhere,
            shadow=None if row.guard is None else shadow_of(row.guard, shadow),
        )
        for asked, row in zip(group, rows, strict=True)
    ]
    probing = any(asked.probed for asked in group)
    full = reference_of([p.kept_tokens for p in prompts], n) if probing else None
    if probing and full is None:  # a full cache to compare with that answers no request
        full = len(rows)
        prompts.append(PromptRow(None, n, RandomStream(group[0].seed, loaded.devices)))
        rows.append(Row(None, n))
    room = len(rest) + max_new_tokens
    try:
        caches = prefill(loaded, ids, prompts[:1] if alone else prompts, room, alone)
    except Exception as error:
        if not alone:
            raise
        return Admission([], [], torch.empty(0), [(0, error)])
    own = [caches.logits] * len(rows)
    if alone and len(prompts) > 1:
        beside = prefill(loaded, ids, prompts[1:], room, alone=False)
        own[1:] = [beside.logits]
        caches = caches.beside(beside)
    refused = []
    for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        if (reason := _unfit(prompt, row, n)) is not None:
            refused.append((index, reason))
            continue
        if row.guard is None:  # what a guard may give back lies where it was
            row.pack(prompt.packed(n))
            continue
        source = source_of(loaded, ids, prompt, row.guard, caches.logits)
        row.origin = Origin(source, n, rest, max_new_tokens, group[index].press_name)
    buckets = _filled(caches.buckets, caches.rows, rows, {index for index, _ in refused})
    running = [row for _, members in buckets for row in members]
    if not running:
        return Admission([], [], torch.empty(0), refused)
    if rest:
        keep = PROBE_TOKENS if probing else 1
        logits = question(loaded, [bucket for bucket, _ in buckets], running, rest, keep)
    else:
        of = {id(row): after[None] for row, after in zip(rows, own, strict=True)}
        logits = torch.stack([of[id(row)] for row in running])
    seen = {id(row): i for i, row in enumerate(running)}
    reference = None if full is None else seen.get(id(rows[full]))
    found = probes(logits, reference)
    if full == len(group):
        buckets = without(buckets, rows[full])
    full_logits = None
    if reference is not None:
        full_logits = logits[reference, -1].clone()  # not all of `logits`
    at = {id(row): i for i, row in enumerate(rows)}
    prefills, order = [], []
    for row in (row for _, members in buckets for row in members):
        asked, prompt, slot = group[at[id(row)]], prompts[at[id(row)]], seen[id(row)]
        order.append(slot)
        prefills.append(
            Prefill(
                logits[slot, -1],
                parts.n_tokens,
                n,
                found[slot] if asked.probed else None,
                mean_share(prompt.evicted) if asked.watched else None,
                None if row.guard is None else full_logits,
                None if prompt.kept is None else prompt.kept.percent(),
            )
        )
    return Admission(buckets, prefills, logits[order, -1], refused)


def _unfit(prompt: PromptRow, row: Row, n_tokens: int) -> Exception | None:
    """Why a row cannot go on after its prefill; None if it can. Notes what its prompt takes."""
    if prompt.error is not None:
        return prompt.error
    try:
        row.kv = kv_use(prompt, n_tokens)
        if row.asked is not None:
            prove_budget(row.asked.point, row.kv)
    except Exception as error:  # noqa: BLE001  this prompt fails; the caller says so
        return error
    return None


def _filled(
    buckets: Sequence[Bucket],
    members: Sequence[Sequence[int]],
    rows: Sequence[Row],
    refused: set[int],
) -> list[tuple[Bucket, list[Row]]]:
    """The buckets with the rows that go on."""
    found = []
    for bucket, indices in zip(buckets, members, strict=True):
        inside = [rows[i] for i in indices]
        for slot in reversed(range(len(inside))):
            if indices[slot] in refused:
                drop(bucket, inside, slot)
        if inside:
            found.append((bucket, inside))
    return found
