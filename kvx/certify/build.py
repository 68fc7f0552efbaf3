"""From an experiment's scored points to certificates, if their inputs changed."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kvx import __version__
from kvx.analyze.columns import ALL_BINS
from kvx.analyze.frames import Experiment, load_experiment
from kvx.certify import page
from kvx.certify.certificate import Certificate, Group, Tested, Verdict, inputs_of, read, whole
from kvx.certify.losses import LossReader, PointLosses
from kvx.certify.series import Series, all_series, chosen, steering_of
from kvx.config.certify import Average, CertifyConfig, Loss
from kvx.config.folder_names import check_name
from kvx.config.numbers import plural
from kvx.config.schema import Config
from kvx.errors import UserError
from kvx.identity.hashing import digest, package_digest
from kvx.identity.user_code import press_code
from kvx.points import experiment_dir
from kvx.stats.betting import ORDER_SEED, prompts_like
from kvx.stats.risk_control import (
    BETTING,
    BOUNDED,
    EXACT,
    RiskTest,
    binomial_p,
    fixed_sequence,
    hoeffding_bentkus_p,
    least_prompts,
    prompts_needed,
)
from kvx.store.atomic import write_text
from kvx.store.catalog import PointRecord, finished_points
from kvx.store.shards import read_inputs

log = logging.getLogger(__name__)
FOLDER = "certificates"
POWER = 0.8
LONGEST_NAME = 200  # bytes; a file system takes 255, and a temporary name is longer


def certify_experiment(config: Config) -> list[Path]:
    """Write a certificate (JSON and Markdown) for every curve; returns the JSON files.

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
            if same_promise(path, settings):  # it was made from other answers
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
    if settings.metric is None:
        return
    check_name("certify.metric", settings.metric)
    if settings.loss is not Loss.score:
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
    """A file for each curve; equal or too long names get a digest.

    Every promise has its own file: an alpha or delta that is not the default is in the name. In
    experiments with several variants each has a folder of its own, as its plots have.
    """
    usual = CertifyConfig()
    promise = [settings.metric or settings.loss.name]
    promise += ["net"] if settings.net else []
    promise += ["examples"] if settings.average is Average.examples else []
    promise += ["bins"] if settings.per_bin else []
    for name in ("alpha", "delta"):
        if (value := getattr(settings, name)) != getattr(usual, name):
            promise.append(f"{name}{value}")
    paths = {
        s: folder
        / FOLDER
        / (s.variant_id if several else "")
        / f"{'-'.join([s.file_name, *promise])}.json"
        for s in curves
    }
    names = Counter(str(path).casefold() for path in paths.values())
    for curve, path in paths.items():
        if names[str(path).casefold()] > 1 or len(path.name.encode()) > LONGEST_NAME:
            own = digest([curve.press, curve.controller, curve.first.info["budget_kind"]])
            start = path.stem.encode()[: LONGEST_NAME - 20].decode(errors="ignore")
            paths[curve] = path.with_name(f"{start}-{own}.json")
    return paths


def same_promise(path: Path, settings: CertifyConfig) -> bool:
    """Whether `path` holds a certificate of the promise that is asked for."""
    try:
        found = read(path)
    except UserError:
        return False
    said = (found.loss, found.net, found.average, found.alpha, found.delta)
    asked = (
        settings.loss.name,
        settings.net,
        settings.average.name,
        settings.alpha,
        settings.delta,
    )
    return said == asked and settings.per_bin is not all(map(whole, found.groups))


def certify(
    experiment: Experiment, reader: LossReader, curve: Series, curves: int, inputs: str
) -> Certificate:
    """The certificate of one curve; `curves` is the number that one might choose among.

    Raises `UserError` if no group of prompts could be certified at any budget.
    """
    settings, first = reader.settings, curve.first
    full = experiment.full_cache(first)
    if full is None:
        raise UserError("no full cache to compare with; run press=none too")
    losses = {p.id: reader.of(p, full) for p in curve.points}
    manifest = experiment.manifest(first)
    edges = [(b["index"], b["low_tokens"], b["high_tokens"]) for b in manifest["bins"]]
    if not settings.per_bin:
        edges = [(ALL_BINS, edges[0][1], edges[-1][2])]
    delta = settings.delta / len(edges)
    groups = []
    for index, low, high in edges:
        here = {i: own.of_bin(index) for i, own in losses.items()}
        counted, tests = here[first.id], []
        test = reader.test(first, counted.n_clusters, delta)
        rows = tested(curve.points, here, settings, delta, test)
        for row, point in zip(rows, curve.points, strict=True):
            # the label says what was kept, where a press keeps another number by its method
            label = experiment.series_columns(point)["budget_label"]
            mean, n = reader.device_use(point, index) or (None, None)
            tests.append(dataclasses.replace(row, budget=label, mean_budget=mean, n_responses=n))
        sizes = Counter(counted.clusters.tolist()).values()
        largest = max(sizes, default=None) if settings.average is Average.examples else None
        n, left_out = len(counted.by_prompt), counted.n_left_out
        groups.append(Group(index, low, high, n, left_out, tuple(tests), test.name, largest))
    needed = least_prompts(settings.net, settings.alpha, delta)
    if all(g.n < needed for g in groups):
        raise UserError(_too_few(groups, needed, settings))
    names = [*dict.fromkeys(str(g.test) for g in groups)]
    info, requests = first.info, reader.requests(first)
    decoding, limits = info["config"]["decoding"], requests["max_new_tokens"].dropna()
    if len(limits):  # rows may set their own; the certificate holds up to the longest
        decoding = {**decoding, "max_new_tokens": int(limits.max())}
    added = requests["compressed_tokens"] - requests["context_tokens"]  # by the template
    return Certificate(
        experiment=experiment.dir.name,
        model={
            "name": info["model"],
            "hash": info["model_hash"],
            "dtype": info["config"]["model"]["dtype"],
        },
        press={
            "name": info["press"],
            "label": curve.press,
            "method": info["config"]["press"]["method"],
            "code": press_code(info),
        },
        controller={**steering_of(first), "label": curve.controller},
        setup={
            "dataset": info["dataset"],
            "manifest": info["manifest"]["key"],
            "manifest_sha256": info["manifest"]["sha256"],
            "variant": curve.variant_id,
            "full_cache_point": full.id,
            "engine": info["engine"],
            "seed": info["seed"],
            "query_aware": info["config"]["prompt"]["query_aware"],
            "decoding": decoding,
            "compressed_tokens": [edges[0][1] + int(added.min()), edges[-1][2] + int(added.max())],
        },
        loss=settings.loss.name,
        metric=reader.metric(first),
        alpha=settings.alpha,
        delta=settings.delta,
        delta_per_group=delta,
        test=" or ".join(names),
        curves=curves,
        groups=tuple(groups),
        kvx=__version__,
        code=package_digest(),
        inputs=inputs,
        net=settings.net,
        average=settings.average.name,
        order_seed=ORDER_SEED if BETTING.name in names else None,
    )


def tested(
    points: Sequence[PointRecord],
    losses: dict[str, PointLosses],
    settings: CertifyConfig,
    delta: float,
    test: RiskTest,
) -> list[Tested]:
    """The budgets of one group of prompts, the largest first, until one is not certified.

    Budgets whose answers prove nothing are left out beforehand. What was asked and measured of the
    cache decides that, never the losses.
    """
    rows: list[Tested] = []
    p_values: dict[int, float] = {}
    for point in points:
        own, info = losses[point.id], point.info
        counted, n_examples = own.by_prompt, None
        if settings.average is Average.examples:
            counted, n_examples = own.known, len(own.known)
        if own.obstacle is None:
            bet = own.tested(settings.average, settings.alpha)
            p_values[len(rows)] = test.p_value(bet, settings.alpha, delta)
        rows.append(
            Tested(
                budget=info["budget_label"],
                ratio=info["budget"],
                tokens=info["budget_tokens"],
                point_id=point.id,
                n=len(own.by_prompt),
                total_loss=float(counted.sum()),
                p=None,
                verdict=Verdict.LEFT_OUT,
                reason=own.obstacle,
                n_examples=n_examples,
            )
        )
    n_certified = fixed_sequence(p_values.values(), delta)
    for place, (i, p) in enumerate(p_values.items()):
        changes: dict[str, Any] = {"p": p, "verdict": Verdict.CERTIFIED}
        if place == n_certified:
            bet = losses[points[i].id].tested(settings.average, settings.alpha)
            why = _would_do(rows[i], bet, settings.alpha, delta, test)
            changes |= {"verdict": Verdict.NOT_CERTIFIED, "reason": why}
        elif place > n_certified:
            changes = {"verdict": Verdict.NOT_TESTED}
        rows[i] = dataclasses.replace(rows[i], **changes)
    return rows


def _would_do(
    row: Tested, losses: NDArray[np.float64], alpha: float, delta: float, test: RiskTest
) -> str:
    """Why a budget is not certified: its mean loss, or the number of prompts.

    `losses` [n] are those that were tested, one for each independent prompt.
    """
    said = f"mean loss {row.mean_loss or 0.0:.3f}"
    if (row.mean_loss or 0.0) >= alpha:
        return said
    by_total = {EXACT.name: binomial_p, BOUNDED.name: hoeffding_bentkus_p}.get(test.name)
    if by_total is not None:
        needed = prompts_needed(float(losses.sum()), alpha, delta, by_total)
        return f"with this loss in all it needs n ≥ {needed} prompts"
    like = prompts_like(losses, alpha, delta, POWER)
    return said if like is None else f"{said}; about {like:,} prompts like these pass in 80%"


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
