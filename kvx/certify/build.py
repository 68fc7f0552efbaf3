"""From an experiment's scored points to certificates, if their inputs changed."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kvx import __version__
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.frames import Experiment, load_experiment
from kvx.certify import page
from kvx.certify.certificate import (
    Certificate,
    Group,
    Tested,
    Verdict,
    inputs_of,
    read,
    whole,
)
from kvx.certify.losses import LossReader, PointLosses
from kvx.certify.series import Series, all_series, chosen, steering_of
from kvx.config.certify import CertifyConfig, Loss
from kvx.config.folder_names import check_name
from kvx.config.numbers import plural
from kvx.config.schema import Config
from kvx.errors import UserError
from kvx.identity.hashing import digest, package_digest
from kvx.identity.user_code import press_code
from kvx.points import experiment_dir
from kvx.stats.certify import PValue, fixed_sequence, prompts_needed
from kvx.store.atomic import write_text
from kvx.store.catalog import PointRecord, finished_points
from kvx.store.shards import read_inputs

log = logging.getLogger(__name__)
FOLDER = "certificates"
LONGEST_NAME = 200  # bytes; a file system takes 255, and a temporary name is longer


def certify_experiment(config: Config) -> list[Path]:
    """Write a certificate (JSON and Markdown) for every curve; the JSON files.

    Raises `UserError` if no curve can be certified at any budget, whatever its losses: there are
    too few prompts, or no full cache to compare with.
    """
    settings = config.certify
    check_settings(settings)
    folder = experiment_dir(config)
    points = finished_points(folder)
    series = all_series(points)
    curves = chosen(series, settings)
    inputs = inputs_hash(points, settings)
    several = len({p.info["variant_id"] for p in points}) > 1
    paths = targets(folder, curves, settings, several)
    if all(inputs_of(path) == inputs and _text(path).is_file() for path in paths.values()):
        log.info("certify: nothing to do → %s", folder / FOLDER)
        return list(paths.values())
    output = Path(config.paths.output)
    experiment = load_experiment(folder, output)
    reader = LossReader(experiment, settings, output)
    written, refused = [], []
    for curve, path in paths.items():
        try:
            beside = sum(s.variant_id == curve.variant_id for s in series)
            made = certify(experiment, reader, curve, beside, inputs)
        except UserError as error:
            refused.append(f"{_name(curve)}: {error}")
            if same_promise(path, settings):  # made from other answers: it holds no longer
                path.unlink()
                _text(path).unlink(missing_ok=True)
            continue
        write_text(_text(path), page.write(made, path.name))
        write_text(path, made.to_json())
        written.append(path)
        log.info("certify: %s: %s → %s", _name(curve), page.summary(made), path)
    if not written:
        more = f" (and {plural(len(refused) - 1, 'more curve')})" if len(refused) > 1 else ""
        raise UserError(refused[0] + more)
    for line in refused:
        log.warning("certify: left out: %s", line)
    return written


def check_settings(settings: CertifyConfig) -> None:
    """Raises `UserError` naming the field for settings that cannot be right."""
    if settings.metric is not None:
        check_name("certify.metric", settings.metric)
    if settings.metric is not None and settings.loss is not Loss.score:
        raise UserError(
            f"certify.metric={settings.metric}: certify.loss={settings.loss.name} has no metric; "
            "use certify.loss=score"
        )


def inputs_hash(points: Sequence[PointRecord], settings: CertifyConfig) -> str:
    """Identity of everything a certificate is made from."""
    scored = [[p.id, p.content_sha256(), read_inputs(p.dir / "scores.parquet")] for p in points]
    asked = dataclasses.asdict(settings) | {"press": None, "controller": None}  # only choose
    return digest([package_digest(), scored, asked], 16)


def targets(
    folder: Path, curves: Sequence[Series], settings: CertifyConfig, several: bool
) -> dict[Series, Path]:
    """A file for each curve; names that would be the same, or too long for one, get a digest."""
    paths = {s: target(folder, s, settings, several) for s in curves}
    names = Counter(str(path).casefold() for path in paths.values())
    for curve, path in paths.items():
        if names[str(path).casefold()] > 1 or len(path.name.encode()) > LONGEST_NAME:
            own = digest([curve.press, curve.controller, curve.first.info["budget_kind"]])
            start = path.stem.encode()[: LONGEST_NAME - 20].decode(errors="ignore")
            paths[curve] = path.with_name(f"{start}-{own}.json")
    return paths


def target(folder: Path, curve: Series, settings: CertifyConfig, several: bool) -> Path:
    """Every promise has a file of its own, named by an alpha or delta that is not the default.

    Of experiments with several variants, each has a folder of its own, as its plots have.
    """
    parts = [curve.file_name, settings.metric or settings.loss.name]
    parts += ["bins"] if settings.per_bin else []
    for name in ("alpha", "delta"):
        value = getattr(settings, name)
        parts += [f"{name}{value}"] if value != getattr(CertifyConfig(), name) else []
    return folder / FOLDER / (curve.variant_id if several else "") / f"{'-'.join(parts)}.json"


def same_promise(path: Path, settings: CertifyConfig) -> bool:
    """Whether there is a certificate that promises what is asked for."""
    try:
        found = read(path)
    except UserError:
        return False
    said = (found.loss, found.alpha, found.delta, not all(map(whole, found.groups)))
    return said == (settings.loss.name, settings.alpha, settings.delta, settings.per_bin)


def certify(
    experiment: Experiment, reader: LossReader, curve: Series, curves: int, inputs: str
) -> Certificate:
    """The certificate of one curve, one of `curves` that might be chosen among.

    Raises `UserError` if no group of prompts could be certified at any budget.
    """
    settings, first = reader.settings, curve.first
    twin = experiment.full_cache(first)
    if twin is None:
        raise UserError("no full cache to compare with; run press=none too")
    losses = {p.id: reader.of(p, twin) for p in curve.points}
    test, p_value = reader.test(first)
    manifest = experiment.manifest(first)
    edges = [(b["index"], b["low_tokens"], b["high_tokens"]) for b in manifest["bins"]]
    if not settings.per_bin:
        edges = [(ALL_BINS, edges[0][1], edges[-1][2])]
    delta = settings.delta / len(edges)
    groups = []
    for index, low, high in edges:
        here = {i: own.of_bin(index) for i, own in losses.items()}
        counted = here[first.id]
        tests = [
            _with_use(
                # of a press that keeps another number by its method, what it kept
                dataclasses.replace(row, budget=experiment.series_columns(point)["budget_label"]),
                reader.devices.of(point, index),
            )
            for row, point in zip(
                tested(curve.points, here, settings.alpha, delta, p_value), curve.points,
                strict=True,
            )
        ]  # fmt: skip
        groups.append(
            Group(index, low, high, len(counted.by_prompt), counted.n_left_out, tuple(tests))
        )
    needed = prompts_needed(0, settings.alpha, delta, p_value)
    if all(g.n < needed for g in groups):
        raise UserError(_too_few(groups, needed, settings))
    info = first.info
    return Certificate(
        experiment=experiment.dir.name,
        model={"name": info["model"], "hash": info["model_hash"],
               "dtype": info["config"]["model"]["dtype"]},
        press={"name": info["press"], "label": curve.press,
               "method": info["config"]["press"]["method"], "code": press_code(info)},
        controller={**steering_of(first), "label": curve.controller},
        setup={
            "dataset": info["dataset"], "manifest": info["manifest"]["key"],
            "manifest_sha256": info["manifest"]["sha256"], "variant": curve.variant_id,
            "full_cache_point": twin.id, "engine": info["engine"], "seed": info["seed"],
            "query_aware": info["config"]["prompt"]["query_aware"],
            "decoding": _decoding(info["config"]["decoding"], reader.requests(first)),
            "compressed_tokens": _compressed_tokens(
                reader.requests(first), edges[0][1], edges[-1][2]
            ),
        },
        loss=settings.loss.name, metric=reader.metric(first), alpha=settings.alpha,
        delta=settings.delta, delta_per_group=delta, test=test, curves=curves,
        groups=tuple(groups), kvx=__version__, code=package_digest(),
        inputs=inputs,
    )  # fmt: skip


def tested(
    points: Sequence[PointRecord],
    losses: dict[str, PointLosses],
    alpha: float,
    delta: float,
    p_value: PValue,
) -> list[Tested]:
    """The budgets of one group of prompts, the largest first, until one is not certified.

    Budgets whose answers are no proof are left out beforehand, for what was asked and measured of
    the cache, never for their losses.
    """
    rows: list[Tested] = []
    p_values: dict[int, float] = {}
    for point in points:
        own, info = losses[point.id], point.info
        values = own.by_prompt
        row = Tested(
            budget=info["budget_label"], ratio=info["budget"], tokens=info["budget_tokens"],
            point_id=point.id, n=len(values), total_loss=float(values.sum()), p=None,
            verdict=Verdict.LEFT_OUT, reason=own.obstacle,
        )  # fmt: skip
        if row.reason is None:
            p_values[len(rows)] = p_value(float(values.sum()), len(values), alpha)
        rows.append(row)
    n = fixed_sequence(p_values.values(), delta)
    for place, (i, p) in enumerate(p_values.items()):
        row = rows[i]
        if place < n:
            rows[i] = dataclasses.replace(row, p=p, verdict=Verdict.CERTIFIED)
        elif place == n:
            why = _would_do(row, alpha, delta, p_value)
            rows[i] = dataclasses.replace(row, p=p, verdict=Verdict.NOT_CERTIFIED, reason=why)
        else:
            rows[i] = dataclasses.replace(row, verdict=Verdict.NOT_TESTED)
    return rows


def _with_use(row: Tested, used: tuple[float, int] | None) -> Tested:
    if used is None:
        return row
    return dataclasses.replace(row, mean_budget=used[0], n_responses=used[1])


def _compressed_tokens(requests: pd.DataFrame, low: int, high: int) -> list[int]:
    """How long the compressed part of a prompt may be whose context has `low` to `high` tokens.

    What a template adds is taken from the `requests`.
    """
    added = requests["compressed_tokens"] - requests["context_tokens"]
    return [low + int(added.min()), high + int(added.max())]


def _decoding(told: dict[str, Any], requests: pd.DataFrame) -> dict[str, Any]:
    """How was decoded, with the most tokens that any request could have: rows may say their own."""
    limits = requests["max_new_tokens"].dropna()
    return told if limits.empty else {**told, "max_new_tokens": int(limits.max())}


def _would_do(row: Tested, alpha: float, delta: float, p_value: PValue) -> str:
    total = row.total_loss or 0.0
    if row.n and total / row.n >= alpha:
        return f"mean loss {total / row.n:.3f}"
    needed = prompts_needed(total, alpha, delta, p_value)
    return f"with this loss in all it needs n ≥ {needed} prompts"


def _too_few(groups: Sequence[Group], needed: int, settings: CertifyConfig) -> str:
    most = max(g.n for g in groups)
    where = " in a length bin" if settings.per_bin else ""
    text = (
        f"needs n ≥ {needed} prompts{where} for certify.alpha={settings.alpha:g} "
        f"certify.delta={settings.delta:g}, even if none loses anything; it has {most}"
    )
    return text + ("; or certify.per_bin=false" if settings.per_bin else "")


def _text(path: Path) -> Path:
    return path.with_suffix(".md")


def _name(curve: Series) -> str:
    info = curve.first.info
    return f"{curve.file_name} on {info['model']}, {info['dataset']} ({curve.variant_id})"
