"""From an experiment's traces to guard/{model.json, card.json, evaluation.parquet, train.md}."""

import dataclasses
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvx.analyze.frames import Experiment, load_experiment
from kvx.config import fields
from kvx.config.numbers import plural
from kvx.config.schema import Config
from kvx.config.train import Target, TrainConfig
from kvx.errors import UserError
from kvx.guard import features
from kvx.guard.hazard import CARD, MODEL, HazardModel
from kvx.identity import hazard_files, provenance
from kvx.identity.hashing import digest, package_digest
from kvx.learning.labels import Role
from kvx.points import experiment_dir
from kvx.store import schemas
from kvx.store.atomic import write_bytes, write_text
from kvx.store.catalog import PointRecord
from kvx.store.layout import REQUESTS, TRACES
from kvx.store.shards import read_inputs, write_table
from kvx.train import analyses, detection, page
from kvx.train.crossfit import CrossFit, Table, fit_parts, inner_parts, outer_folds
from kvx.train.judge import Results
from kvx.train.prefill_gate import GATE, crossfit_gates, gates
from kvx.train.trace_data import Data, load, prompt_ids

log = logging.getLogger(__name__)
FOLDER = "guard"
IN_CARD = (analyses.HEADLINE, "features", detection.ANALYSIS, GATE)
EVALUATION, PREDICTIONS = "evaluation.parquet", "predictions.parquet"


def train_experiment(config: Config) -> None:
    """Write the model, its card, evaluation and page, unless their inputs are unchanged."""
    train = config.train
    check(train)
    folder = experiment_dir(config)
    experiment = load_experiment(folder, Path(config.paths.output))
    out, inputs = folder / FOLDER, inputs_hash(experiment, train)
    made = [out / name for name in (MODEL, CARD, PREDICTIONS, "train.md")]
    if read_inputs(out / EVALUATION) == inputs and all(path.is_file() for path in made):
        log.info("train: nothing to do → %s", out)
        return
    data = load(experiment, train.labels, train.degenerate)
    check_data(folder, data, train)
    names = features.names_of(train.features, data.presses)
    compared = None  # loaded before the long work, since it may not fit
    if train.compare is not None:
        compared = HazardModel.load(hazard_files.folder_of(train.compare), names)
    started = time.perf_counter()
    table = Table.of(data)
    log.info(
        "train: %d traces of %d prompts, %d events, %d tokens × %d features (%.0f s)",
        len(data),
        data.n_prompts,
        int(data.about.events.sum()),
        *table.features.shape,
        time.perf_counter() - started,
    )
    fold = outer_folds(data, train)
    results, cross = analyses.evaluate(table, train, fold)
    if compared is not None:
        analyses.compare(table, train, fold, str(train.compare), compared, results)
    everything = np.ones(len(data), bool)
    part = inner_parts(data, everything, train)
    aimed = table if train.target is Target.onset else table.until_detection()
    model = fit_parts(aimed, part, names, train.horizon, train).with_card(
        gate=gates(data, everything),
        features={"set": train.features, "names": list(names)},
        **card_entries(experiment, data, train, results),
    )
    for name, content in model.files().items():
        write_bytes(out / name, content)
    rows = predictions(data, cross, crossfit_gates(data, train, fold), fold, part)
    write_table(out / PREDICTIONS, rows, schemas.PREDICTIONS, inputs)
    write_text(out / "train.md", page.document(folder.name, model.card, results))
    write_table(out / EVALUATION, results.rows, schemas.EVALUATION, inputs)
    log.info("train: %s → %s", page.in_short(results), out)


def check(train: TrainConfig) -> None:
    """Raises `UserError` for settings that cannot be right."""
    asked = [("features", train.features), *(("ablations", name) for name in train.ablations or [])]
    for field, name in asked:
        if name not in features.SETS:
            known = ", ".join(features.SETS)
            raise UserError(f"train.{field}={name}: no such feature set; choose from {known}")
    fields.check(train, "train.")


def check_data(folder: Path, data: Data, train: TrainConfig) -> None:
    """Raises `UserError` if there is too little to learn from."""
    if data.n_prompts < 2 * train.folds:
        raise UserError(
            f"{folder}: {plural(data.n_prompts, 'prompt')}; a split by prompt with "
            f"train.folds={train.folds} needs at least {2 * train.folds}"
        )
    if not data.about.events.any():
        loops = int(data.frame["looping"].sum())
        why = f"{loops} loops, all shared with the full cache" if loops else "nothing loops"
        raise UserError(
            f"{folder}: no catastrophe to learn from ({why}); run lower budgets or more tokens, or "
            "train.labels=any"
        )
    seen = data.until_detection().about
    if train.target is Target.detection and np.isnan(seen.onset[seen.events]).any():
        raise UserError(
            f"{folder}: without token ids it is unknown when a loop could be detected; set "
            "train.target=onset"
        )
    if np.isnan(data.traces.signals["top1_prob"]).any() and train.features != "top20":
        raise UserError(
            f"{folder}: a server's traces hold log-probs alone; set train.features=top20 "
            "train.ablations=[]"
        )


def inputs_hash(experiment: Experiment, train: TrainConfig) -> str:
    """Identity of everything the model and its figures are made from."""
    settings = {k: v for k, v in dataclasses.asdict(train).items() if k != "threads"}
    if train.compare is not None:  # by its content, not by its path
        settings["compare"] = hazard_files.identity(hazard_files.folder_of(train.compare))
    points = {p.id: data_hash(p) for p in experiment.points}
    return digest([package_digest(), settings, points], 16)


def data_hash(point: PointRecord) -> str:
    """Identity of a point's answers, traces and catastrophes."""
    found = read_inputs(point.dir / "catastrophes.parquet")
    return digest([point.content_sha256(REQUESTS, TRACES), found], 16)


def card_entries(
    experiment: Experiment, data: Data, train: TrainConfig, results: Results
) -> dict[str, Any]:
    used = set(data.frame["point_id"])
    plain = {k: getattr(v, "name", v) for k, v in dataclasses.asdict(train).items()}
    plain["leave_out"] = [group.name for group in train.leave_out]
    roles = {role.name.lower(): int((data.about.role == role).sum()) for role in Role}
    return {
        "experiment": experiment.dir.name,
        "training": plain,
        "data": {
            "points": {p.id: data_hash(p) for p in experiment.points if p.id in used},
            **{f"{c}s": sorted(set(data.frame[c])) for c in ("model", "dataset")},
            "presses": sorted(set(data.frame["press"])), "prompts": sorted(set(prompt_ids(data))),
            "n_prompts": data.n_prompts, "n_traces": len(data),
            "n_tokens": int(data.traces.starts[-1]), "n_instant": int(data.about.instant.sum()),
            **{f"n_{name}": n for name, n in roles.items()},
        },
        "metrics": [r for r in results.rows if r["analysis"] in IN_CARD],
        "skipped": results.skipped,
        "provenance": provenance.describe(),
    }  # fmt: skip


def predictions(
    data: Data,
    cross: CrossFit,
    gate: Mapping[str, NDArray[np.float64]],
    fold: NDArray[np.int64],
    part: NDArray[np.str_],
) -> list[dict[str, Any]]:
    """Cross-fitted hazards, for replays.

    No row was scored by a model that knew its prompt; its thresholds and `gate`s [n] in nats were
    chosen on other prompts too.
    """
    rows = []
    for i, about in enumerate(data.frame.itertuples()):
        piece = slice(data.traces.starts[i], data.traces.starts[i + 1])
        onset = data.about.onset[i]
        rows.append(
            {
                "request_id": about.request_id, "prompt": about.prompt, "fold": int(fold[i]),
                "part": str(part[i]), "role": Role(int(data.about.role[i])).name.lower(),
                "onset": None if np.isnan(onset) else int(onset),
                "hazard": cross.score[piece],
                **{f"threshold_{n}": float(limit[i]) for n, limit in cross.thresholds.items()},
                **{
                    f"gate_{n}_nats": None if np.isnan(limit[i]) else float(limit[i])
                    for n, limit in gate.items()
                },
            }
        )  # fmt: skip
    return rows
