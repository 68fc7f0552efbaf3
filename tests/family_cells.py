"""Cells of the matrix family × press: kvx's answers beside the reference's."""

import json
import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import hydra.utils
import torch

from kvx.cli.command import compose
from kvx.config import conditions
from kvx.config.press_choices import PressNeed
from kvx.config.schema import BudgetConfig, Config, PressConfig
from kvx.data.example import Example
from kvx.data.frozen_examples import load_examples
from kvx.data.prompt import PromptBuilder, PromptParts
from kvx.data.tokenizer import load_tokenizer
from kvx.engines.base import PointFailed, PointWork, Response, seed_of
from kvx.engines.kvpress.applicability import not_applicable
from kvx.engines.kvpress.engine import KVPressEngine
from kvx.errors import UserError, first_line
from kvx.points import Point, Request
from kvx.prepare.build import ensure_manifest
from tests.families import FAMILIES, make, write
from tests.family_reference import Answer, compressed, generated, n_full_layers, rounded
from tests.family_wrappers import theirs
from tests.models import TINY
from tests.presses import EVERYWHERE

LENGTHS = (131, 246, 533)  # tokens: below the window, at its edge while answering, above it
NEW_TOKENS = 12  # of an answer
TOLERANCE = 1e-4  # of log-probabilities, in nats
# kvpress hides a key behind one that fits the queries of a pass, and a question passes in parts
HIDING_TOLERANCE = 1e-3
ROUNDINGS = 5  # tries to tell a press's near tie from another answer
FULL = "none"
WORST = (
    "same", "adapted", "undecided", "not applicable", "no reference", "error", "wrong"
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What a press at one budget does on a family, and why, or the largest difference in nats.

    The verdict is same, adapted (the same as the reference with what the press lacks there),
    undecided (what the press scores is the same but for rounding), not applicable (refused before
    anything ran), wrong, error (while it ran), or no reference.
    """

    verdict: str
    reason: str = ""


@dataclass
class Column:
    """The cells of a family by press and budget, and how its requests ran."""

    cells: dict[tuple[str, float], Cell] = field(default_factory=dict)
    requests: int = 0
    prefills: int = 0  # passes over a whole prompt
    warnings: list[str] = field(default_factory=list)

    @property
    def shared(self) -> bool:
        """Whether points shared their prompts' prefills, apart from those of masking presses."""
        return 0 < self.prefills < self.requests


@cache
def shipped() -> dict[str, PressConfig]:
    """Every press of conf/press that needs no file of the hub."""
    return {name: compose(f"press={name}").press for name in EVERYWHERE}


def column(
    name: str, folder: Path, presses: Sequence[str], budgets: Sequence[float], *overrides: str
) -> Column:
    """All `presses` × `budgets` of a family, in one run of the engine; its files go to `folder`.

    The full cache is always among them.
    """
    work = points(name, folder, presses, budgets, *overrides)
    found = Column()
    answers = _answers(work, found)
    references = _References(name, work[0])
    for item in work:
        config = item.point.config
        key = config.press.name, config.budget.ratio
        if key not in found.cells:
            cells = [references.compare(item.point, *asked, answers) for asked in item.requests]
            found.cells[key] = max(cells, key=lambda cell: WORST.index(cell.verdict))
    return found


def _answers(work: Sequence[PointWork], column: Column) -> dict[str, Response]:
    """kvx's answers by request; cells that get none go into the `column`."""
    answers: dict[str, Response] = {}
    with _watching(column):
        try:
            engine = KVPressEngine(work[0].point.config)
            model = engine.loaded.model
        except UserError as error:
            for item in work:
                _set(column, item.point, "not applicable", str(error))
            return {}
        fit = []
        for item in work:
            if (reason := not_applicable(item.point.config)) is not None:
                _set(column, item.point, "not applicable", reason)
                continue
            try:
                engine.check([item.point])
                fit.append(item)
            except UserError as error:
                _set(column, item.point, "not applicable", str(error))
            except Exception as error:  # noqa: BLE001  what the matrix is to show
                _set(column, item.point, "error", f"{type(error).__name__}: {first_line(error)}")
        column.requests = sum(len(i.requests) for i in fit if not _alone(i.point.config.press))
        lengths = {e.compressed_tokens for e in work[0].point.manifest.entries}
        alone = [item for item in fit if _alone(item.point.config.press)]
        together = [item for item in fit if item not in alone]
        with _counting(model, lengths, column):
            answers |= _run(engine, together, column)
        answers |= _run(engine, alone, column)
    return answers


def _run(engine: KVPressEngine, work: Sequence[PointWork], column: Column) -> dict[str, Response]:
    answers: dict[str, Response] = {}
    try:
        for event in engine.generate(work) if work else ():
            if isinstance(event, PointFailed):
                _set(column, event.point, "error", event.message)
            elif event.error_type is not None:
                _set(column, event.request.point, "error", str(event.error_message))
            else:
                answers[event.request.id] = event
    except Exception as error:  # noqa: BLE001  what the matrix is to show
        for item in work:
            _set(column, item.point, "error", f"{type(error).__name__}: {first_line(error)}")
    return answers


def _set(column: Column, point: Point, verdict: str, reason: str) -> None:
    config = point.config
    column.cells.setdefault((config.press.name, config.budget.ratio), Cell(verdict, reason))


def _alone(press: PressConfig) -> bool:
    return bool({PressNeed.masks, PressNeed.changes_forward} & set(press.needs))


@contextmanager
def _watching(column: Column) -> Iterator[None]:
    """What kvx warns of goes into the `column`."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (line := record.getMessage()) not in column.warnings:
                column.warnings.append(line)

    handler = Handler(logging.WARNING)
    logging.getLogger("kvx").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("kvx").removeHandler(handler)


@contextmanager
def _counting(model: Any, lengths: set[int], column: Column) -> Iterator[None]:
    """The passes of `model` over whole prompts are counted."""

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        column.prefills += ids is not None and ids.shape[1] in lengths

    handle = model.model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class _References:
    """What kvx's answers of one family are compared with."""

    def __init__(self, name: str, work: PointWork) -> None:
        config, date = work.point.config, work.point.manifest.date
        self.model, self.in_parts = make(name), FAMILIES[name].in_parts
        self.n_layers = n_full_layers(self.model)
        self.own_attention = self.model.config._attn_implementation
        if getattr(self.model.config.get_text_config(), "attn_logit_softcapping", None):
            self.own_attention = "eager"  # sdpa ignores the cap
        self.builder = PromptBuilder(load_tokenizer(config.model), config, date)
        self.full: dict[str, Answer] = {}

    def compare(
        self, point: Point, request: Request, example: Example, answers: dict[str, Response]
    ) -> Cell:
        ours, parts = answers[request.id], self.builder.parts(example)
        ratio = 1.0 - point.config.budget.ratio
        if ratio == 0.0 or point.config.press.method is None:
            if example.example_id not in self.full:
                self.full[example.example_id] = self._full(parts)
            return difference(ours, self.full[example.example_id])
        cell = Cell("no reference")
        for seeds in ((0,), range(1, 1 + ROUNDINGS)):
            for adapted in ("", "lacking", "queries"):
                found = self._compared(ours, point, request, parts, ratio, adapted, seeds)
                if found.verdict == "same":
                    return Cell("adapted", found.reason) if adapted else found
                if cell.verdict == "no reference" or found.verdict == "undecided":
                    cell = found
            if cell.verdict == "no reference":
                break
        return cell

    def _compared(
        self, ours: Response, point: Point, request: Request, parts: PromptParts, ratio: float,
        adapted: str, seeds: Sequence[int],
    ) -> Cell:  # fmt: skip
        """The same if one of the references is, each with its weights rounded by another seed.

        Seed 0 leaves them alone. Undecided if rounding changes most references, too.
        """
        cell, answers = Cell("no reference"), list[Answer]()
        for seed in seeds:
            try:
                with rounded(self.model, seed) if seed else nullcontext():
                    answers.append(self._pressed(point, request, parts, ratio, adapted))
            except Exception as error:  # noqa: BLE001  a press can raise anything
                return Cell("no reference", f"{type(error).__name__}: {first_line(error)}")
            masks = PressNeed.masks in point.config.press.needs
            found = difference(ours, answers[-1], HIDING_TOLERANCE if masks else TOLERANCE)
            if found.verdict == "same":
                return Cell("same", found.reason + (", up to a tie" if seed else ""))
            cell = cell if cell.reason else found
        if 2 * len({tuple(answer.tokens) for answer in answers}) > len(answers) > 1:
            return Cell("undecided", "rounding decides which entries the press keeps")
        return cell

    def _full(self, parts: PromptParts) -> Answer:
        self.model.set_attn_implementation(self.own_attention)
        if self.in_parts:
            return compressed(self.model, parts.compressed_ids, parts.rest_ids, None, NEW_TOKENS)
        return generated(self.model, [*parts.compressed_ids, *parts.rest_ids], NEW_TOKENS)

    def _pressed(
        self,
        point: Point,
        request: Request,
        parts: PromptParts,
        ratio: float,
        adapted: str = "",
    ) -> Answer:
        config = point.config.press
        weights = PressNeed.attention_weights in config.needs
        self.model.set_attn_implementation("eager" if weights else self.own_attention)
        if config.budget_sets is not None:
            given = conditions.arguments(config, 1.0 - ratio)
            press = hydra.utils.instantiate(config.method | given, _convert_="all")
        else:
            press = theirs(config.method, ratio, self.n_layers)
        self.model.config.name_or_path = point.config.model.path  # KVzip loads the tokenizer
        ids, rest = parts.compressed_ids, parts.rest_ids
        return compressed(self.model, ids, rest, press, NEW_TOKENS, seed_of(request), adapted)


def difference(ours: Response, reference: Answer, tolerance: float = TOLERANCE) -> Cell:
    """Same or wrong: tokens, and the likeliest log-probabilities of each as long as they agree.

    Where the reference all but ties, either token is right, and what follows is not compared.
    """
    assert ours.token_ids is not None
    assert ours.trace is not None
    assert ours.trace.top_logprobs is not None
    known = torch.log_softmax(reference.logits.double(), -1)
    pairs = list(zip(ours.token_ids, reference.tokens, strict=False))
    agree = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    compared = min(agree + 1, len(ours.token_ids), len(reference.tokens))
    top = torch.tensor(ours.trace.top_logprobs[:compared], dtype=torch.float64)
    off = float((top - known[:compared].topk(top.shape[1]).values).abs().max())
    chosen = torch.tensor(ours.token_ids[:compared])[:, None]
    said = torch.tensor(ours.trace.logprob[:compared], dtype=torch.float64)
    off = max(off, float((said - known[:compared].gather(1, chosen)[:, 0]).abs().max()))
    if off > tolerance:
        return Cell("wrong", f"{off:.1e} nats; {agree} of {len(reference.tokens)} tokens agree")
    if agree == len(reference.tokens) == len(ours.token_ids):
        return Cell("same", f"{off:.1e}")
    best = known[agree].topk(2).values if agree < len(known) else torch.tensor([1.0, 0.0])
    if float(best[0] - best[1]) <= 2 * tolerance:
        return Cell("same", f"{off:.1e}, up to a tie")
    return Cell("wrong", f"{len(ours.token_ids)} tokens instead of {len(reference.tokens)}")


def points(
    name: str, folder: Path, presses: Sequence[str], budgets: Sequence[float], *overrides: str
) -> list[PointWork]:
    """Work of a point per press and budget over the same prompts."""
    config = _config(name, folder, *overrides)
    manifest, frozen = ensure_manifest(config)
    examples = load_examples(frozen)
    first = Point(config, manifest, frozen)
    found = []
    for press, budget in [(FULL, 1.0), *((p, b) for p in presses for b in budgets if p != FULL)]:
        point = first.beside(
            replace(config, press=shipped()[press], budget=BudgetConfig(ratio=budget))
        )
        requests = tuple((Request(point, e), examples[e.example_id]) for e in manifest.entries)
        found.append(PointWork(point, requests))
    return found


def _config(name: str, folder: Path, *overrides: str) -> Config:
    model, data = write(name, folder / "model"), _questions(folder)
    return compose(
        "model=hf", f"model.path={model}", f"model.name={name}", "model.max_context_tokens=4096",
        "dataset=local", f"dataset.source.path={data}", "dataset.template.context='{context}'",
        "dataset.template.question=' {question}'", "dataset.binning.n_bins=1",
        f"decoding.max_new_tokens={NEW_TOKENS}", "signals=full", f"paths.output={folder}",
        *overrides,
    )  # fmt: skip


def _questions(folder: Path) -> Path:
    """A file with a question about random words for each of `LENGTHS`."""
    words = json.loads((TINY / "words.json").read_text())
    known, draw = [*words["keys"], *words["filler"]], random.Random(0)
    rows = [
        {
            "id": str(n),
            "context": " ".join(draw.choices(known, k=n - 1)),  # and the token that begins a text
            "question": " ".join(draw.choices(known, k=4)),
            "answers": ["none"],
        }
        for n in LENGTHS
    ]
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
