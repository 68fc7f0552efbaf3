"""inspect_ai: logs of `inspect eval`, as .eval or .json (read: version 2 of the format)."""

import json
import math
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from kvx.compare.results import Result, asked_key, references_key, text_key
from kvx.errors import UserError, first_line

KIND = "inspect"
ZSTANDARD = 93  # zip's number of a method that Python's zipfile knows from 3.14 on
# inspect's own values of answers (inspect_ai.scorer.value_to_float)
WORDS = {
    "c": 1.0, "p": 0.5, "i": 0.0, "n": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0,
}  # fmt: skip
# inspect_ai's own scorers
HIGHER = {
    "match", "includes", "pattern", "answer", "choice", "exact", "f1", "math",
    "model_graded_qa", "model_graded_fact",
}  # fmt: skip
SETTINGS = ("model", "model_args", "model_generate_config", "task_args", "task_version")


def read_log(path: Path, cluster: str | None) -> Result:
    """One task. A score of several values gives metrics named `scorer/value`.

    An example that ran several times (epochs) has the mean of its scores. Samples that failed or
    that a stopped run did not reach have none. Raises `UserError` for a file that is no log, or one
    without samples.
    """
    log = _of_zip(path) if zipfile.is_zipfile(path) else _of_json(path)
    about, samples = log["eval"], log["samples"]
    if not samples:
        raise UserError(f"{path}: holds no samples; it was written with log_samples=false")
    by_id: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, sample in enumerate(samples, start=1):
        if not isinstance(sample, dict) or not {"id", "input"} <= sample.keys():
            raise UserError(f"{path}: sample {number} has no id and input")
        by_id[str(sample["id"])].append(sample)
    _refuse_doubled(path, by_id)
    asked = [str(i) for i in (about.get("dataset") or {}).get("sample_ids") or []]
    names = list(dict.fromkeys(name for s in samples for name, _ in _values(s)))
    if not names:
        raise UserError(f"{path}: no sample has a score that is a number; run inspect score")
    epochs = int((about.get("config") or {}).get("epochs") or 1)
    ids = [*by_id, *(i for i in asked if i not in by_id)]
    first = {i: runs[0] for i, runs in by_id.items()}
    scores, left = _means(ids, by_id, names, epochs)
    return Result(
        path=path,
        kind=KIND,
        label=f"{about.get('model', '?')}/{about.get('task', '?')}",
        examples=pd.DataFrame(
            {
                "id": ids,
                "prompt": [_of(first.get(i), lambda s: text_key(_text(s["input"]))) for i in ids],
                "asked": [
                    _of(first.get(i), lambda s: asked_key(_text(s["input"]), _targets(s)))
                    for i in ids
                ],
                "references": [
                    _of(first.get(i), lambda s: references_key(_targets(s))) for i in ids
                ],
                "cluster": _clusters(path, ids, first, cluster),
            },
            dtype=object,
        ),
        scores=scores,
        higher_is_better=dict.fromkeys(names, True),  # inspect's metrics have no direction
        place={"task": str(about.get("task"))},
        settings=_settings(about),
        notes=_notes(log, names, left, epochs),
    )


def _of_json(path: Path) -> dict[str, Any]:
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: is not JSON ({first_line(error)})") from None
    if not isinstance(log, dict) or "eval" not in log:
        raise UserError(f"{path}: is no log of inspect_ai; it has no `eval`")
    return log | {"samples": log.get("samples") or []}


def _of_zip(path: Path) -> dict[str, Any]:
    """An .eval log; one whose run was killed has a journal instead of a header."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = {info.filename: info for info in archive.infolist()}
            head = next((n for n in ("header.json", "_journal/start.json") if n in names), None)
            if head is None:
                raise UserError(f"{path}: is no log of inspect_ai; it has no header.json")
            log: dict[str, Any] = json.loads(_member(path, archive, names[head]))
            found = [i for n, i in names.items() if n.startswith("samples/")]
            log["samples"] = [json.loads(_member(path, archive, info)) for info in found]
    except (ValueError, OSError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)})") from None
    if "eval" not in log:
        raise UserError(f"{path}: is no log of inspect_ai; its header has no `eval`")
    return log


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A file of the archive, also where it is compressed with Zstandard, as inspect's are."""
    if info.compress_type != ZSTANDARD:
        return archive.read(info)
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)  # lengths of the name and the extra field of its header
        lengths = file.read(4)
        file.seek(sum(int.from_bytes(lengths[i : i + 2], "little") for i in (0, 2)), 1)
        packed = file.read(info.compress_size)
    unpacked: bytes = pa.Codec("zstd").decompress(packed, info.file_size, asbytes=True)
    return unpacked


def _refuse_doubled(path: Path, by_id: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    for name, runs in by_id.items():
        if len({run.get("epoch", 1) for run in runs}) < len(runs):
            raise UserError(
                f"{path}: sample {name} is there twice in one epoch; it cannot be told which of "
                "them to pair"
            )


def _values(sample: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """A sample's scores that are numbers, by metric; nan where inspect calls it unscored."""
    for scorer, score in (sample.get("scores") or {}).items():
        value = score.get("value") if isinstance(score, dict) else score
        for name, part in value.items() if isinstance(value, dict) else [("", value)]:
            if (number := _number(part)) is not None:
                yield f"{scorer}/{name}" if name else scorer, number


def _number(value: Any) -> float | None:
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, str):
        try:
            return WORDS[value.lower()] if value.lower() in WORDS else float(value)
        except ValueError:
            return None
    return math.nan if value is None else None


def _means(
    ids: Sequence[str],
    by_id: Mapping[str, Sequence[Mapping[str, Any]]],
    names: Sequence[str],
    epochs: int,
) -> tuple[pd.DataFrame, int]:
    """Scores [ids, names], and how many runs of scored examples had none: these count as 0."""
    scores, left = np.full((len(ids), len(names)), np.nan), 0
    for row, name in enumerate(ids):
        runs = [dict(_values(run)) for run in by_id.get(name, ())]
        for column, metric in enumerate(names):
            known = [r[metric] for r in runs if not math.isnan(r.get(metric, math.nan))]
            if known:
                of = max(epochs, len(runs))
                scores[row, column] = sum(known) / of
                left += of - len(known) if column == 0 else 0
    return pd.DataFrame(scores, columns=list(names)), left


def _text(value: Any) -> str:
    """A sample's input: a text, or messages whose content is a text or parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_text(part) for part in value)
    if isinstance(value, dict):
        return _text(value.get("content", value.get("text", "")))
    return ""


def _targets(sample: Mapping[str, Any]) -> list[str]:
    target = sample.get("target", "")
    return [str(t) for t in target] if isinstance(target, list) else [str(target)]


def _of(sample: dict[str, Any] | None, key: Any) -> str | None:
    return None if sample is None else str(key(sample))


def _clusters(
    path: Path, ids: Sequence[str], first: Mapping[str, dict[str, Any]], field: str | None
) -> list[str | None]:
    """Metadata `field` of each sample; a sample that never ran is a cluster of its own."""
    if field is None:
        return [None] * len(ids)
    known = {i: s.get("metadata") or {} for i, s in first.items()}
    if any(field not in metadata for metadata in known.values()):
        there = ", ".join(next(iter(known.values()))) or "none"
        raise UserError(f"{path}: compare.cluster={field} is not in metadata; there are {there}")
    return [str(known[i][field]) if i in known else f"\0{i}" for i in ids]


def _settings(about: Mapping[str, Any]) -> dict[str, Any]:
    config = about.get("config") or {}
    return {
        **{name: about[name] for name in SETTINGS if name in about},
        "dataset": (about.get("dataset") or {}).get("name"),
        "epochs": config.get("epochs"),
        "limit": config.get("limit"),
        **{f"versions.{name}": v for name, v in (about.get("packages") or {}).items()},
    }


def _notes(log: Mapping[str, Any], names: Sequence[str], left: int, epochs: int) -> list[str]:
    others = [n for n in dict.fromkeys(n.partition("/")[0] for n in names) if n not in HIGHER]
    notes = []
    if others:
        notes.append(
            f"inspect's scores have no direction: higher is taken as better of {', '.join(others)}"
        )
    if log.get("status") not in (None, "success"):
        notes.append(f"the run ended with status {log.get('status', 'started')}")
    if epochs > 1:
        notes.append(f"scores are means of {epochs} epochs")
    if left:
        notes.append(f"{left} runs of scored examples have no score and count as 0")
    return notes
