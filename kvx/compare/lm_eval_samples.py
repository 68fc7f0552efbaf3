"""lm-evaluation-harness: files of `--log_samples`, one per task (read: versions 0.4.x)."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kvx.compare.results import Result, asked_key, references_key, text_key
from kvx.errors import UserError, first_line

KIND = "lm-eval"
NAME = re.compile(r"samples_(?P<task>.+?)_(?P<at>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")
# columns of a row that are no metrics, where an older lm-eval does not list its metrics
ABOUT = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics",
    "doc_hash", "prompt_hash", "target_hash",
}  # fmt: skip
# directions of lm-eval's own metrics (lm_eval.api.metrics), where no results_*.json tells them
LOWER = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score"}
HIGHER = {
    "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "exact", "f1", "em", "mcc",
    "bleu", "chrf", "rouge1", "rouge2", "rougeL", "mc1", "mc2", "pass@1",
}  # fmt: skip
# what results_*.json tells of a run and can change its answers
SETTINGS = ("model", "model_args", "gen_kwargs", "limit", "random_seed", "fewshot_seed")


def newest(folder: Path) -> list[Path]:
    """The newest file of each task in `folder` and the folders below it."""
    latest: dict[tuple[Path, str], tuple[str, Path]] = {}
    for path in sorted(folder.rglob("samples_*.jsonl")):
        found = NAME.fullmatch(path.name)
        task, at = (found["task"], found["at"]) if found else (path.stem, "")
        key = (path.parent, task)
        latest[key] = max(latest.get(key, ("", path)), (at, path))
    return [path for _, path in latest.values()]


def read_samples(path: Path, cluster: str | None) -> Result:
    """One task. A metric of a task with several filters is named `exact_match,strict-match`.

    An example's id is the hash of its document. Raises `UserError` for a file that is no
    `samples_*.jsonl`, and for a `cluster` that its documents lack.
    """
    rows = list(_rows(path))
    named = NAME.fullmatch(path.name)
    task = named["task"] if named else path.stem
    about = _results(path, named["at"] if named else "")
    filters = list(dict.fromkeys(str(row.get("filter", "none")) for row in rows))
    found = pd.DataFrame(_values(rows, several=len(filters) > 1))
    if found.empty:
        raise UserError(f"{path}: holds no metric that is a number per example")
    if found.duplicated(["doc_id", "metric"]).any():
        twice = found.loc[found.duplicated(["doc_id", "metric"]), "doc_id"].iloc[0]
        raise UserError(
            f"{path}: document {twice} is there twice; it cannot be told which of them to pair"
        )
    names = list(dict.fromkeys(found["metric"]))
    scores = found.pivot(index="doc_id", columns="metric", values="score")[names]
    first = {row["doc_id"]: row for row in reversed(rows)}
    docs = [first[i] for i in scores.index]
    directions = _mapping(about, "higher_is_better", task)
    model = about.get("model_name") or _mapping(about, "config").get("model") or path.parent.name
    return Result(
        path=path,
        kind=KIND,
        label=f"{model}/{task}",
        examples=pd.DataFrame(
            {
                "id": _ids(docs),
                "prompt": [text_key(_prompt(row)) for row in docs],
                "asked": [asked_key(_prompt(row), [str(row.get("target"))]) for row in docs],
                "references": [references_key([str(row.get("target"))]) for row in docs],
                "cluster": _clusters(path, docs, cluster),
            }
        ),
        scores=scores.reset_index(drop=True).astype(np.float64),
        higher_is_better={m: better(m.partition(",")[0], directions) for m in names},
        place={"task": task},
        settings=_settings(about, task),
        notes=_notes(names, directions),
    )


def better(metric: str, told: Mapping[str, Any]) -> bool:
    """Whether `metric` is better the higher it is: as `told`, else as lm-eval has it, else yes."""
    return bool(told.get(metric, metric not in LOWER))


def _notes(names: Sequence[str], told: Mapping[str, Any]) -> list[str]:
    metrics = dict.fromkeys(name.partition(",")[0] for name in names)
    guessed = [m for m in metrics if m not in told and m not in LOWER | HIGHER]
    if not guessed:
        return []
    return [
        f"no results_*.json tells the direction of {', '.join(guessed)}: higher is taken as better"
    ]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"{path}: line {number} is not JSON ({first_line(error)})"
                ) from None
            if not isinstance(row, dict) or not {"doc_id", "doc"} <= row.keys():
                raise UserError(
                    f"{path}: line {number} has no doc_id and doc; name a samples_*.jsonl that "
                    "lm-eval wrote with --log_samples"
                )
            if not isinstance(row["doc_id"], int | str):
                raise UserError(f"{path}: line {number}: doc_id is no number")
            yield row


def _values(rows: Sequence[dict[str, Any]], several: bool) -> Iterator[dict[str, Any]]:
    """A row per document and metric that is a number."""
    for row in rows:
        for name in row.get("metrics") or sorted(row.keys() - ABOUT):
            value = row.get(name)
            if value is None or isinstance(value, bool | int | float):
                metric = f"{name},{row.get('filter')}" if several else name
                score = np.nan if value is None else float(value)
                yield {"doc_id": row["doc_id"], "metric": metric, "score": score}


def _ids(docs: Sequence[dict[str, Any]]) -> list[str]:
    """The documents' hashes; equal documents are numbered."""
    seen: dict[str, int] = {}
    ids = []
    for row in docs:
        own = row.get("doc_hash") or text_key(json.dumps(row["doc"], sort_keys=True, default=str))
        seen[own] = seen.get(own, 0) + 1
        ids.append(own if seen[own] == 1 else f"{own}-{seen[own]}")
    return ids


def _prompt(row: dict[str, Any]) -> str:
    """The text that the model continued; an older lm-eval lists it, a newer one names it."""
    arguments = row.get("arguments")
    values = list(arguments.values()) if isinstance(arguments, dict) else arguments
    first: Any = values
    while isinstance(first, list | tuple) and first:
        first = first[0]
    return str(first.get("arg_0", "")) if isinstance(first, dict) else str(first or "")


def _clusters(
    path: Path, docs: Sequence[dict[str, Any]], field: str | None
) -> list[str] | list[None]:
    if field is None:
        return [None] * len(docs)
    if any(not isinstance(row["doc"], dict) for row in docs):
        raise UserError(f"{path}: compare.cluster={field}: its doc is no mapping of fields")
    if any(field not in row["doc"] for row in docs):
        known = ", ".join(docs[0]["doc"])
        raise UserError(f"{path}: compare.cluster={field} is no field of doc; there are {known}")
    return [str(row["doc"][field]) for row in docs]


def _results(path: Path, at: str) -> dict[str, Any]:
    """The results_*.json beside the samples; empty where it is missing or unreadable."""
    try:
        found = json.loads(path.with_name(f"results_{at}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _mapping(about: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """What is nested in `about` under these names; empty where there is nothing, or no mapping."""
    found: Any = about
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _settings(about: dict[str, Any], task: str) -> dict[str, Any]:
    config = _mapping(about, "config")
    own = _mapping(about, "configs", task)
    return {
        **{name: config.get(name) for name in SETTINGS if name in config},
        "num_fewshot": _mapping(about, "n-shot").get(task),
        "task_hash": _mapping(about, "task_hashes").get(task),
        "generation_kwargs": own.get("generation_kwargs"),
        "chat_template_sha": about.get("chat_template_sha"),
        "versions.lm_eval": about.get("lm_eval_version"),
        "versions.transformers": about.get("transformers_version"),
    }
